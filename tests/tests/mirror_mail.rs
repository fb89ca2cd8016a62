//! The mails that the mirror sends about its runs, through moto's SNS to a queue in the place of a mailbox.

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::aws::Moto;
use tests::directory::Directory;
use tests::harness::{Mirror, list};
use tests::http;
use uuid::Uuid;

const LIST: &str = "members.lists.example.org";
const ACCOUNT: &str = "123456789012";
const REGION: &str = "us-east-1";

/// A topic of moto, and a queue that gets its messages.
struct Mailbox {
    moto: Moto,
    name: String,
}

impl Mailbox {
    async fn start() -> Result<Self> {
        let mailbox = Self { moto: Moto::start()?, name: format!("t{:016x}", fastrand::u64(..)) };
        mailbox.call("AmazonSQS.CreateQueue", &json!({"QueueName": mailbox.name})).await?;
        Ok(mailbox)
    }

    fn topic(&self) -> String {
        format!("arn:aws:sns:{REGION}:{ACCOUNT}:{}", self.name)
    }

    async fn create_topic(&self) -> Result<()> {
        let queue = format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{}", self.name);
        self.call_sns(&[("Action", "CreateTopic"), ("Name", &self.name)]).await?;
        let topic = self.topic();
        self.call_sns(&[("Action", "Subscribe"), ("TopicArn", &topic), ("Protocol", "sqs"), ("Endpoint", &queue)]).await
    }

    /// Returns the subjects and texts of the mails since the last call.
    async fn mails(&self) -> Result<Vec<(String, String)>> {
        let url = format!("{}/{ACCOUNT}/{}", self.moto.url(), self.name);
        let body = json!({"QueueUrl": url, "MaxNumberOfMessages": 10, "VisibilityTimeout": 3600});
        let received = self.call("AmazonSQS.ReceiveMessage", &body).await?;
        let mut mails = Vec::new();
        for message in received["Messages"].as_array().into_iter().flatten() {
            let message: Value = serde_json::from_str(message["Body"].as_str().context("it has a body")?)?;
            let text = |key: &str| message[key].as_str().map(str::to_owned).context("it has a subject and a text");
            mails.push((text("Subject")?, text("Message")?));
        }
        Ok(mails)
    }

    async fn subjects(&self) -> Result<Vec<String>> {
        Ok(self.mails().await?.into_iter().map(|(subject, _)| subject).collect())
    }

    async fn call_sns(&self, form: &[(&str, &str)]) -> Result<()> {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = http().post(self.moto.url()).header("authorization", authorization("sns"));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let status = request.body(body).send().await?.status();
        ensure!(status.is_success(), "SNS responded with {status}");
        Ok(())
    }

    async fn call(&self, operation: &str, body: &Value) -> Result<Value> {
        let request = http().post(self.moto.url()).header("authorization", authorization("sqs"));
        let request = request.header("content-type", "application/x-amz-json-1.0").header("x-amz-target", operation);
        let response = request.body(body.to_string()).send().await?;
        ensure!(response.status().is_success(), "SQS responded with {}", response.status());
        Ok(serde_json::from_slice(&response.bytes().await?)?)
    }
}

fn authorization(service: &str) -> String {
    format!("AWS4-HMAC-SHA256 Credential=A/20261122/{REGION}/{service}/aws4_request")
}

/// A mirror of one list of twelve members, with a ledger and a mailbox.
struct Env {
    mirror: Mirror,
    mailbox: Mailbox,
    group: Uuid,
    variables: Vec<(String, String)>,
    _dir: TempDir,
}

impl Env {
    async fn start(variables: &[(&str, &str)]) -> Result<Self> {
        let mailbox = Mailbox::start().await?;
        let dir = TempDir::new()?;
        let mut directory = Directory::default();
        let group = directory.add_plain_group(&mut Rng::new(), 12);
        let mappings = json!([{"group_guid": group, "list_id": LIST}]);
        let location = format!("file://{}", dir.path().join("ledger").display());
        let (url, topic) = (mailbox.moto.url(), mailbox.topic());
        let own = [
            ("LEDGER", location.as_str()),
            ("REPORT_TOPIC_ARN", &topic),
            ("AWS_ENDPOINT_URL_SNS", &url),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ];
        let variables = [&own, variables].concat();
        let mirror = Mirror::start(directory, mappings, &variables).await?;
        mirror.mailman.create_list("members").await?;
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Ok(Self { mirror, mailbox, group, variables, _dir: dir })
    }

    /// Replaces the instance by another one, which shares only the ledger with it.
    fn replace_instance(&mut self) -> Result<()> {
        let variables: Vec<(&str, &str)> =
            self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.mirror.function = self.mirror.another_instance(&variables)?;
        Ok(())
    }

    async fn run(&self, event: Value) -> Result<Value> {
        self.mirror.run(event).await
    }

    fn members(&self) -> Vec<Uuid> {
        self.mirror.novi.state().directory.groups[&self.group].clone()
    }

    /// Lets a member become inactive.
    fn deactivate(&self, index: usize) {
        let member = self.members()[index];
        self.mirror.novi.state().directory.person(member)["Active"] = json!(false);
    }

    /// Empties the group, which blocks the list.
    fn empty_group(&self) {
        if let Some(members) = self.mirror.novi.state().directory.groups.get_mut(&self.group) {
            members.clear();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_and_problems_are_mailed_once_and_name_no_one() -> Result<()> {
    let mut env = Env::start(&[]).await?;
    env.mailbox.create_topic().await?;
    let personal: Vec<String> = {
        let directory = &env.mirror.novi.state().directory;
        let of = |member: &Uuid| [directory.address(*member), member.hyphenated().to_string()];
        directory.groups[&env.group].iter().flat_map(of).chain([env.group.hyphenated().to_string()]).collect()
    };
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    let mut mails = env.mailbox.mails().await?;
    assert_eq!(mails.len(), 1, "{mails:?}");
    assert_eq!(mails[0].0, "novi-bridge weekly: 12 joined");
    let text = "\n\nmembers.lists.example.org: ok\n  12 joined. 12 on the list.\n\n";
    assert!(mails[0].1.contains(text), "{}", mails[0].1);

    env.run(json!({})).await?;
    env.deactivate(0);
    for event in [json!({"dry_run": true}), json!({"show": true}), json!({"explain": []}), json!({"probe": true})] {
        env.mirror.function.invoke(&event).await?;
    }
    assert_eq!(env.mailbox.subjects().await?, [""; 0], "nothing changed");
    assert_eq!(list(&env.run(json!({})).await?, LIST)["unsubscribed"], 1);
    mails.extend(env.mailbox.mails().await?);
    assert_eq!(mails.last().map(|mail| mail.0.as_str()), Some("novi-bridge: 1 left"));

    env.empty_group();
    assert_eq!(env.run(json!({})).await?["status"], "blocked");
    let blocked = env.mailbox.mails().await?;
    assert_eq!(blocked.len(), 1, "{blocked:?}");
    assert_eq!(blocked[0].0, "novi-bridge: no changes, 1 list blocked");
    let text = &blocked[0].1;
    assert!(text.contains("run \"novi-bridge run --force members.lists.example.org\""), "{text}");
    assert!(text.contains("11 on the list.\n  Why: Blocked because all groups of this list are empty"), "{text}");
    // The ledger knows that this was mailed.
    env.run(json!({})).await?;
    env.replace_instance()?;
    env.run(json!({})).await?;
    assert_eq!(env.mailbox.subjects().await?, [""; 0]);

    mails.extend(blocked);
    for (subject, text) in &mails {
        let found = personal.iter().find(|personal| subject.contains(*personal) || text.contains(*personal));
        assert_eq!(found, None, "{subject}: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn weekly_mail_comes_once_and_includes_what_came_before() -> Result<()> {
    let mut env = Env::start(&[("REPORTS", "weekly")]).await?;
    env.mailbox.create_topic().await?;
    env.run(json!({"lists": [LIST]})).await?;
    assert_eq!(env.mailbox.subjects().await?, [""; 0], "a run over some lists is not the state of all");
    env.run(json!({})).await?;
    env.replace_instance()?;
    env.deactivate(0);
    env.run(json!({})).await?;
    env.empty_group();
    assert_eq!(env.run(json!({})).await?["status"], "blocked");
    assert_eq!(env.mailbox.subjects().await?, ["novi-bridge weekly: 12 joined"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_that_may_not_write_mails_once_a_week_that_it_does_nothing() -> Result<()> {
    let mut env = Env::start(&[("MIRROR_APPLY", "false")]).await?;
    env.mailbox.create_topic().await?;
    env.run(json!({"dry_run": true})).await?;
    assert_eq!(env.mailbox.subjects().await?, [""; 0]);
    env.run(json!({})).await?;
    let mails = env.mailbox.mails().await?;
    assert_eq!(mails.len(), 1, "{mails:?}");
    assert_eq!(mails[0].0, "novi-bridge weekly: MirrorApply is false, so no list is changed");
    assert!(mails[0].1.contains("This is what it would do now: 12 joined."), "{}", mails[0].1);
    env.run(json!({})).await?;
    env.replace_instance()?;
    env.run(json!({})).await?;
    assert_eq!(env.mailbox.subjects().await?, [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_that_cannot_be_sent_fails_no_run_and_is_sent_later() -> Result<()> {
    let env = Env::start(&[]).await?;
    let report = env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(12)), "{report}");
    let log = env.mirror.function.log();
    assert!(log.contains("report not mailed") && log.contains("SNS responded with 404 (NotFound)"), "{log}");
    env.mailbox.create_topic().await?;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    assert_eq!(env.mailbox.subjects().await?, ["novi-bridge weekly: 12 joined"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_mailed_without_a_ledger_and_none_if_reports_are_off() -> Result<()> {
    let mut env = Env::start(&[("LEDGER", "")]).await?;
    env.mailbox.create_topic().await?;
    env.run(json!({})).await?;
    env.run(json!({})).await?;
    assert_eq!(env.mailbox.subjects().await?, ["novi-bridge: 12 joined"]);
    env.variables.push(("REPORTS".to_owned(), "none".to_owned()));
    env.replace_instance()?;
    env.deactivate(0);
    assert_eq!(list(&env.run(json!({})).await?, LIST)["unsubscribed"], 1);
    assert_eq!(env.mailbox.subjects().await?, [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn problem_is_not_mailed_by_each_instance_if_the_ledger_cannot_remember_it() -> Result<()> {
    // It can be read, as a ledger that doesn't exist yet, but not written.
    const LEDGER: (&str, &str) = ("LEDGER", "file:///nonexistent/ledger");
    for (apply, expected) in [("true", vec!["novi-bridge: 12 joined, 1 list partial"]), ("false", Vec::new())] {
        let mut env = Env::start(&[("MIRROR_APPLY", apply), LEDGER]).await?;
        env.mailbox.create_topic().await?;
        for _ in 0..3 {
            env.run(json!({})).await?;
            env.replace_instance()?;
        }
        assert_eq!(env.mailbox.subjects().await?, expected, "MIRROR_APPLY={apply}");
    }
    Ok(())
}
