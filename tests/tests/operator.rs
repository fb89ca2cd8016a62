//! The operator's commands with the real AWS CLI: `make parameters` against moto, and `make invoke-mirror` against the
//! emulator.

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

/// Runs scripts of `ops/` with input on standard input. The `aws` in their `PATH` records its arguments and then
/// executes the real one.
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

    fn run(&self, script: &str, arguments: &[&str], endpoint: &str, input: &str) -> Result<Output> {
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
        child.stdin.take().context("the child has a standard input")?.write_all(input.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    /// Returns the arguments of the AWS CLI, which are visible in the process list.
    fn arguments(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join("arguments"))?)
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_script_prompts_writes_and_prints_no_secret() -> Result<()> {
    // The script's default path is that of a real installation, so no other test may use this moto.
    let moto = Moto::start_own()?;
    let operator = Operator::new()?;
    let [novi, mailman, key, jwt, api] =
        ["novi-key-+/=", "mailman-pass", "frontend-key-of-this-test", "jwt-secret-1", "https://novi.example.org/api"];
    let group = "39120341-3c8e-47b0-9a40-45b5659b2044";
    let probe = "5f0d8a3c-3f9e-4c57-8a4b-1f2a52f6f0a7";
    let mappings: Vec<Value> = (0..60)
        .map(|n| json!({"group_guid": group, "list_id": format!("list{n}.lists.example.org"), "keep": ["owner@example.org"]}))
        .collect();
    let file = operator.dir.path().join("mappings.json");
    // With the byte order mark that some editors write.
    std::fs::write(&file, format!("\u{feff}{}", serde_json::to_string_pretty(&mappings)?))?;
    let keys = json!([{"name": "frontend", "key": key, "bypass": false}]).to_string();
    let input = [
        api,
        novi,
        probe,
        &keys,
        jwt,
        "https://lists.example.org/mailman-api",
        "restadmin",
        mailman,
        &format!("@{}", file.display()),
        "",
    ]
    .join("\n");
    let output = operator.run("parameters.py", &["--prefix", "/idaa"], &moto.url(), &(input + "\n"))?;
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("9 written"), "{}", text(&output));
    for secret in [novi, probe, key, jwt, mailman, group, "owner@example.org"] {
        assert!(!text(&output).contains(secret), "printed: {}", text(&output));
        assert!(!operator.arguments()?.contains(secret), "in the process list: {secret}");
    }
    for (name, kind) in [
        ("novi_api_root_url", "String"),
        ("novi_idaa_api_key", "SecureString"),
        ("novi_probe_uuid", "SecureString"),
        ("api_keys", "SecureString"),
        ("jwt_secret", "SecureString"),
        ("mailman_base_url", "String"),
        ("mailman_username", "String"),
        ("mailman_password", "SecureString"),
        ("novi_mailman_sync", "SecureString"),
        ("novi_mailman_sync/1", "SecureString"),
    ] {
        assert_eq!(moto.parameter_type(&format!("/idaa/{name}")).await?.as_deref(), Some(kind), "{name}");
    }
    assert_eq!(moto.parameter_type("/idaa/cache_password").await?, None);

    // The functions accept what was written.
    let url = moto.url();
    let mut variables = CREDENTIALS.to_vec();
    variables.extend([("CONFIG_FILE", ""), ("PARAMETER_PREFIX", "/idaa"), ("AWS_ENDPOINT_URL", url.as_str())]);
    let private = Private::default();
    let mirror = Function::start("mirror", &json!({}), &variables, &private)?;
    let returned = mirror.invoke(&json!({"lists": ["list59.lists.example.org"], "dryrun": 1})).await?;
    assert!(
        returned.to_string().contains("unknown key; expected one of dry_run"),
        "the parameters were not accepted: {returned}"
    );
    let returned = mirror.invoke(&json!({"lists": ["list60.lists.example.org"]})).await?;
    assert!(
        returned.to_string().contains("no mapping names the list"),
        "there must be exactly sixty mappings: {returned}"
    );

    // Replacing one parameter with fewer mappings, and an invalid input.
    let output = operator.run("parameters.py", &["--only", "novi_mailman_sync"], &url, "[]\n")?;
    assert!(text(&output).contains("set, version 1") && text(&output).contains("1 written"), "{}", text(&output));
    assert_eq!(moto.parameter_type("/idaa/novi_mailman_sync/1").await?, None, "the additional part must be deleted");
    let output =
        operator.run("parameters.py", &["--only", "api_keys"], &url, "[{\"name\":\"x\",\"key\":\"hush\"}]\n")?;
    assert!(!output.status.success() && text(&output).contains("shorter than 20") && !text(&output).contains("hush"));
    for (pasted, error) in [
        ("Basic hush", "without `Basic `"),
        ("basic\thush", "without `Basic `"),
        ("\u{201c}hush\u{201d}", "isn't ASCII"),
        ("hu\u{200b}sh", "isn't ASCII"),
        ("\"hush\"", "quotation marks"),
        ("hu sh", "without spaces"),
    ] {
        let output = operator.run("parameters.py", &["--only", "novi_idaa_api_key"], &url, &format!("{pasted}\n"))?;
        assert!(!output.status.success() && text(&output).contains(error), "{}", text(&output));
        assert!(!text(&output).contains("hu"), "{}", text(&output));
    }
    let output = operator.run("parameters.py", &["--only", "jwt_secret"], &url, "-\n")?;
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(moto.parameter_type("/idaa/jwt_secret").await?, None);
    // Pressing only Enter changes nothing.
    let output = operator.run("parameters.py", &["--only", "novi_idaa_api_key"], &url, "\n")?;
    assert!(text(&output).contains("0 written"), "{}", text(&output));
    Ok(())
}

/// Uses a fake `sam` and `aws` that record their arguments, because the tests have no account to deploy to.
#[test]
fn deploy_script_builds_what_it_deploys_prompts_once_and_keeps_the_settings() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir(dir.path().join("ops"))?;
    for file in ["ops/deploy.py", "ops/stack.py", "samconfig.toml"] {
        std::fs::copy(workspace().join(file), dir.path().join(file))?;
    }
    let (log, local) = (dir.path().join("log"), dir.path().join("samconfig.local.toml"));
    // The account quota leaves ten instances. In the guided deployment, the operator chooses x86_64.
    let guided = format!("sed -i 's/arm64/x86_64/; s/ReserveC/Cache=none &/' {}", local.display());
    for (program, action) in [
        ("sam", format!("case \"$*\" in *--guided*) {guided};; esac")),
        ("aws", "echo 10".to_owned()),
        ("rustup", String::new()),
    ] {
        let path = dir.path().join(program);
        std::fs::write(&path, format!("#!/bin/sh\necho {program} \"$*\" >> {}\n{action}\n", log.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    let deploy = |set: &str| -> Result<(String, Vec<String>)> {
        std::fs::write(&log, "")?;
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
        let mut deploy = Command::new(venv().join("bin/python"));
        let output = deploy.arg(dir.path().join("ops/deploy.py")).env("PATH", path).env("SET", set).output()?;
        assert!(output.status.success(), "{}", text(&output));
        let log = std::fs::read_to_string(&log)?;
        Ok((text(&output), log.lines().filter(|line| line.starts_with("sam ")).map(str::to_owned).collect()))
    };
    let (printed, commands) = deploy("")?;
    assert!(printed.contains("Cache=none") && printed.contains("ReserveConcurrency=false"), "{printed}");
    let config = format!("sam deploy --config-file {}", local.display());
    assert_eq!(
        commands,
        [
            "sam build --parameter-overrides Architecture=arm64".to_owned(),
            format!("{config} --guided"),
            "sam build --parameter-overrides Architecture=x86_64".to_owned(),
            config.clone(),
        ]
    );
    // A change is kept: the next deployment must not disable the mirror again.
    let build = "sam build --parameter-overrides Architecture=x86_64".to_owned();
    for set in ["MirrorApply=true MirrorSchedule='cron(30 6 * * ? *)'", ""] {
        let (_, commands) = deploy(set)?;
        assert_eq!(commands, [build.clone(), config.clone()]);
        let settings = std::fs::read_to_string(&local)?;
        for part in ["MirrorApply=", "true", "cron(30 6 * * ? *)", "ReserveConcurrency"] {
            assert!(settings.contains(part), "{part}: {settings}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn invoke_script_runs_the_mirror_and_prints_its_report_as_a_table() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 12);
    let first = directory.groups[&group][0];
    directory.person(first)["UnsubscribeFromEmails"] = json!(true);
    let address = directory.address(first);
    let mappings = json!([{"group_guid": group, "list_id": "members.lists.example.org"}]);
    let env = Mirror::start(directory, mappings, &[]).await?;
    let list = env.mailman.create_list("members").await?;
    env.private.add(&address);
    let operator = Operator::new()?;
    let endpoint = env.function.endpoint();
    let invoke = |arguments: &[&str], input: &str| {
        operator.run("invoke_mirror.py", &[&["--function", "function"], arguments].concat(), &endpoint, input)
    };

    let output = invoke(&["--dry-run"], "")?;
    assert!(output.status.success(), "{}", text(&output));
    let table = text(&output);
    assert!(table.starts_with("ok (dry run: nothing was written), 14 calls to Novi and 1 to Mailman in"), "{table}");
    let row: Vec<&str> =
        table.lines().find(|line| line.starts_with(&list)).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row, [&list, "ok", "11", "0", "11", "0", "0", "0"], "{table}");
    assert!(table.contains("not on the list: 1 opted out"), "{table}");
    assert!(env.mailman.roster(&list, "member").await?.is_empty());

    assert!(invoke(&[], "")?.status.success());
    assert_eq!(env.mailman.roster(&list, "member").await?.len(), 11);

    let output = invoke(&["--explain"], &format!("{address}\n"))?;
    assert!(
        text(&output).contains(&format!("{address}\n  {list}: not wanted, not subscribed: its record is unsubscribed"))
    );
    assert!(!operator.arguments()?.contains(&address), "an address was in the process list");

    env.novi.state().directory.groups.insert(group, Vec::new());
    let output = invoke(&[], "")?;
    assert!(!output.status.success(), "a calling script must see the failure");
    assert!(
        text(&output).contains("all groups of this list are empty while 11 addresses are subscribed"),
        "{}",
        text(&output)
    );
    let output = invoke(&["--list", &list, "--force", &list], "")?;
    assert!(output.status.success() && text(&output).contains("forced"), "{}", text(&output));
    assert!(env.mailman.roster(&list, "member").await?.is_empty());

    let output = invoke(&["--list", "other.lists.example.org"], "")?;
    assert!(
        text(&output).contains("The mirror did not run") && text(&output).contains("no mapping names"),
        "{}",
        text(&output)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_script_prints_what_to_fix() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 12);
    let mappings = json!([{"group_guid": group, "list_id": "members.lists.example.org"}]);
    let env = Mirror::start(directory, mappings, &[]).await?;
    let operator = Operator::new()?;
    let probe = || operator.run("probe.py", &["--function", "function"], &env.function.endpoint(), "");

    let output = probe()?;
    assert!(!output.status.success(), "a list is missing: {}", text(&output));
    let printed = text(&output);
    assert!(printed.starts_with("failed: 1 errors and 0 warnings, 15 calls to Novi and 2 to Mailman in"), "{printed}");
    let finding = "error  list members.lists.example.org: Mailman has no list with this id.";
    let fix = "         Fix: Create the list, or correct list_id in the mapping.";
    assert!(printed.contains(&format!("{finding}\n{}", &fix[2..])), "{printed}");

    env.mailman.create_list("members").await?;
    let output = probe()?;
    assert!(output.status.success(), "{}", text(&output));
    let printed = text(&output);
    let row = |start: &str| -> Vec<&str> {
        printed.lines().find(|line| line.starts_with(start)).unwrap_or_default().split_whitespace().collect()
    };
    assert_eq!(
        row("1  "),
        ["1", "members.lists.example.org", "200", "total_count", "12", "12", "12", "1", "0", "0", "0", "yes"],
        "{printed}"
    );
    assert_eq!(row("Email"), ["Email", "12", "0", "0", "0", "0", "0", "0", "0"], "{printed}");
    assert_eq!(row("members.lists"), ["members.lists.example.org", "0", "0", "no", "yes", "confirm"], "{printed}");
    assert_eq!(env.private.found_in(&printed).len(), 0, "{printed}");
    Ok(())
}
