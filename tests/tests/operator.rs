//! The administrator's commands: `make parameters` against moto, `make
//! invoke-mirror` against the emulator, with the real AWS CLI.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::aws::{CREDENTIALS, Moto};
use tests::directory::Directory;
use tests::function::{Function, venv};
use tests::harness::Mirror;
use tests::privacy::Private;
use tests::workspace;

/// Runs a script of `ops/` with answers on its standard input. The `aws` that it
/// finds writes down its arguments and is the real one then.
struct Operator {
    dir: TempDir,
}

impl Operator {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let wrapper = dir.path().join("aws");
        let (log, real) = (dir.path().join("arguments"), venv().join("bin/aws"));
        let script = format!("#!/bin/sh\nprintf '%s\\n' \"$*\" >> {}\nexec {} \"$@\"\n", log.display(), real.display());
        std::fs::write(&wrapper, script)?;
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { dir })
    }

    fn run(&self, script: &str, arguments: &[&str], endpoint: &str, answers: &str) -> Result<Output> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut child = Command::new(venv().join("bin/python"))
            .arg(workspace().join("ops").join(script))
            .args(arguments)
            .envs(CREDENTIALS)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL", endpoint)
            .env("PATH", format!("{}:{path}", self.dir.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("it has an input")?.write_all(answers.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    /// What the list of processes showed of the AWS CLI.
    fn arguments(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join("arguments"))?)
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_asked_for_written_and_never_shown() -> Result<()> {
    let moto = Moto::start()?;
    let operator = Operator::new()?;
    let [novi, mailman, key, jwt, api] =
        ["novi-key-+/=", "mailman-pass", "frontend-key-of-this-test", "jwt-secret-1", "https://novi.example.org/api"];
    let group = "39120341-3c8e-47b0-9a40-45b5659b2044";
    let mappings: Vec<Value> = (0..60)
        .map(|n| json!({"group_guid": group, "list_id": format!("list{n}.lists.example.org"), "keep": ["owner@example.org"]}))
        .collect();
    let file = operator.dir.path().join("mappings.json");
    std::fs::write(&file, serde_json::to_string_pretty(&mappings)?)?;
    let keys = json!([{"name": "frontend", "key": key, "bypass": false}]).to_string();
    let answers = [
        api,
        novi,
        &keys,
        jwt,
        "https://lists.example.org/mailman-api",
        "restadmin",
        mailman,
        &format!("@{}", file.display()),
        "",
    ]
    .join("\n");
    let done = operator.run("parameters.py", &["--prefix", "/idaa"], &moto.url(), &(answers + "\n"))?;
    assert!(done.status.success(), "{}", text(&done));
    assert!(text(&done).contains("8 written"), "{}", text(&done));
    for secret in [novi, key, jwt, mailman, group, "owner@example.org"] {
        assert!(!text(&done).contains(secret), "shown: {}", text(&done));
        assert!(!operator.arguments()?.contains(secret), "in the list of processes: {secret}");
    }
    for (name, kind) in [
        ("novi_api_root_url", "String"),
        ("novi_idaa_api_key", "SecureString"),
        ("api_keys", "SecureString"),
        ("jwt_secret", "SecureString"),
        ("mailman_base_url", "String"),
        ("mailman_username", "String"),
        ("mailman_password", "SecureString"),
        ("novi_mailman_sync", "SecureString"),
        ("novi_mailman_sync/1", "SecureString"),
    ] {
        assert_eq!(moto.kind(&format!("/idaa/{name}")).await?.as_deref(), Some(kind), "{name}");
    }
    assert_eq!(moto.kind("/idaa/cache_password").await?, None);

    // Both functions take what was written.
    let url = moto.url();
    let mut variables = CREDENTIALS.to_vec();
    variables.extend([("CONFIG_FILE", ""), ("PARAMETER_PREFIX", "/idaa"), ("AWS_ENDPOINT_URL", url.as_str())]);
    let private = Private::default();
    let mirror = Function::start("mirror", &json!({}), &variables, &private)?;
    let returned = mirror.invoke(&json!({"lists": ["list59.lists.example.org"], "dryrun": 1})).await?;
    assert!(returned.to_string().contains("none of dry_run"), "it has read its parameters: {returned}");
    let returned = mirror.invoke(&json!({"lists": ["list60.lists.example.org"]})).await?;
    assert!(returned.to_string().contains("no mapping names the list"), "all sixty, and no more: {returned}");

    // Rotating one, with fewer mappings, and an answer that cannot be used.
    let done = operator.run("parameters.py", &["--only", "novi_mailman_sync"], &url, "[]\n")?;
    assert!(text(&done).contains("set, version 1") && text(&done).contains("1 written"), "{}", text(&done));
    assert_eq!(moto.kind("/idaa/novi_mailman_sync/1").await?, None, "what it went on in is gone with it");
    let done = operator.run("parameters.py", &["--only", "api_keys"], &url, "[{\"name\":\"x\",\"key\":\"hush\"}]\n")?;
    assert!(!done.status.success() && text(&done).contains("shorter than 20") && !text(&done).contains("hush"));
    let done = operator.run("parameters.py", &["--only", "jwt_secret"], &url, "-\n")?;
    assert!(done.status.success(), "{}", text(&done));
    assert_eq!(moto.kind("/idaa/jwt_secret").await?, None);
    // Nothing but Enter changes nothing.
    let done = operator.run("parameters.py", &["--only", "novi_idaa_api_key"], &url, "\n")?;
    assert!(text(&done).contains("0 written"), "{}", text(&done));
    Ok(())
}

/// With a `sam` and an `aws` that write down what they are asked: there is no account to deploy to.
#[test]
fn a_deployment_builds_what_it_deploys_asks_once_and_keeps_the_answers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir(dir.path().join("ops"))?;
    for file in ["ops/deploy.py", "ops/stack.py", "samconfig.toml"] {
        std::fs::copy(workspace().join(file), dir.path().join(file))?;
    }
    let (log, local) = (dir.path().join("log"), dir.path().join("samconfig.local.toml"));
    // The account leaves ten instances; the guided deployment answers that it wants x86_64.
    let guided = format!("sed -i 's/arm64/x86_64/; s/ReserveC/Cache=none &/' {}", local.display());
    for (program, answer) in [
        ("sam", format!("case \"$*\" in *--guided*) {guided};; esac")),
        ("aws", "echo 10".to_owned()),
        ("rustup", String::new()),
    ] {
        let path = dir.path().join(program);
        std::fs::write(&path, format!("#!/bin/sh\necho {program} \"$*\" >> {}\n{answer}\n", log.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    let deploy = |set: &str| -> Result<(String, Vec<String>)> {
        std::fs::write(&log, "")?;
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
        let mut deploy = Command::new(venv().join("bin/python"));
        let done = deploy.arg(dir.path().join("ops/deploy.py")).env("PATH", path).env("SET", set).output()?;
        assert!(done.status.success(), "{}", text(&done));
        let log = std::fs::read_to_string(&log)?;
        Ok((text(&done), log.lines().filter(|line| line.starts_with("sam ")).map(str::to_owned).collect()))
    };
    let (said, asked) = deploy("")?;
    assert!(said.contains("Cache=none") && said.contains("ReserveConcurrency=false"), "{said}");
    let config = format!("sam deploy --config-file {}", local.display());
    assert_eq!(
        asked,
        [
            "sam build --parameter-overrides Architecture=arm64".to_owned(),
            format!("{config} --guided"),
            "sam build --parameter-overrides Architecture=x86_64".to_owned(),
            config.clone(),
        ]
    );
    // A change is kept: the next deployment must not turn the mirror off again.
    let build = "sam build --parameter-overrides Architecture=x86_64".to_owned();
    for set in ["MirrorApply=true MirrorSchedule='cron(30 6 * * ? *)'", ""] {
        let (_, asked) = deploy(set)?;
        assert_eq!(asked, [build.clone(), config.clone()]);
        let kept = std::fs::read_to_string(&local)?;
        for part in ["MirrorApply=", "true", "cron(30 6 * * ? *)", "ReserveConcurrency"] {
            assert!(kept.contains(part), "{part}: {kept}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_is_invoked_and_its_report_is_a_table() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 12);
    let first = directory.groups[&group][0];
    directory.person(first)["UnsubscribeFromEmails"] = json!(true);
    let address = directory.address(first);
    let mappings = json!([{"group_guid": group, "list_id": "members.lists.example.org"}]);
    let world = Mirror::start(directory, mappings, &[]).await?;
    let list = world.mailman.create_list("members").await?;
    world.private.add(&address);
    let operator = Operator::new()?;
    let endpoint = world.function.endpoint();
    let invoke = |arguments: &[&str], answers: &str| {
        operator.run("invoke_mirror.py", &[&["--function", "function"], arguments].concat(), &endpoint, answers)
    };

    let done = invoke(&["--dry-run"], "")?;
    assert!(done.status.success(), "{}", text(&done));
    let table = text(&done);
    assert!(table.starts_with("ok (dry run: nothing was written), 14 calls to Novi and 1 to Mailman in"), "{table}");
    let row: Vec<&str> =
        table.lines().find(|line| line.starts_with(&list)).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row, [&list, "ok", "11", "0", "11", "0", "0", "0"], "{table}");
    assert!(table.contains("not on it: 1 opted out"), "{table}");
    assert!(world.mailman.roster(&list, "member").await?.is_empty());

    assert!(invoke(&[], "")?.status.success());
    assert_eq!(world.mailman.roster(&list, "member").await?.len(), 11);

    let done = invoke(&["--explain"], &format!("{address}\n"))?;
    assert!(
        text(&done).contains(&format!("{address}\n  {list}: not wanted, not subscribed: its record is unsubscribed"))
    );
    assert!(!operator.arguments()?.contains(&address), "an address stood in the list of processes");

    world.novi.state().directory.groups.insert(group, Vec::new());
    let done = invoke(&[], "")?;
    assert!(!done.status.success(), "a script must see it");
    assert!(text(&done).contains("its groups are empty while 11 are subscribed"), "{}", text(&done));
    let done = invoke(&["--list", &list, "--force", &list], "")?;
    assert!(done.status.success() && text(&done).contains("forced"), "{}", text(&done));
    assert!(world.mailman.roster(&list, "member").await?.is_empty());

    let done = invoke(&["--list", "other.lists.example.org"], "")?;
    assert!(
        text(&done).contains("The mirror did not run") && text(&done).contains("no mapping names"),
        "{}",
        text(&done)
    );
    Ok(())
}
