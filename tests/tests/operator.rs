//! The operator's commands: `make parameters` with the real AWS CLI against moto, `novi-bridge run` with the real one
//! against the emulator, and with one that returns given reports. What needs no server is tested in `ops/tests`.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::aws::{CREDENTIALS, Moto};
use tests::directory::Directory;
use tests::function::{Function, venv};
use tests::harness::Mirror;
use tests::lists::{Lists, People, people};
use tests::novi::{Novi, NoviFault};
use tests::privacy::Private;
use tests::{shared_servers, workspace};

/// Runs scripts of `ops/` with input on standard input. The `aws` in their `PATH` records its arguments and then does
/// `action`.
struct Operator {
    dir: TempDir,
}

impl Operator {
    /// Executes the real AWS CLI.
    fn new() -> Result<Self> {
        let aws: Vec<String> = shared_servers::python_program("aws", &[venv().join("bin/aws")])
            .iter()
            .map(|word| word.display().to_string())
            .collect();
        Self::with_action(&format!("exec {} \"$@\"", aws.join(" ")))
    }

    /// Keeps each event, and returns these results of invocations, one after the other.
    fn with_results(results: &[Value]) -> Result<Self> {
        let operator = Self::with_action(concat!(
            "cd \"$(dirname \"$0\")\"\n",
            "next=$(ls | grep -c '^event')\n",
            "cat > event$next\n",
            "for last; do :; done\n",
            "exec cp result$next \"$last\"\n"
        ))?;
        for (number, result) in results.iter().enumerate() {
            std::fs::write(operator.dir.path().join(format!("result{number}")), result.to_string())?;
        }
        Ok(operator)
    }

    fn with_action(action: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let wrapper = dir.path().join("aws");
        let log = dir.path().join("arguments");
        std::fs::write(&wrapper, format!("#!/bin/sh\nprintf '%s\\n' \"$*\" >> {}\n{action}\n", log.display()))?;
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { dir })
    }

    /// Invokes the mirror with these arguments.
    fn invoke_mirror(&self, arguments: &[&str], input: &str) -> Result<Output> {
        self.run("novi-bridge", &[&["run", "--function", "function"], arguments].concat(), "http://127.0.0.1:9", input)
    }

    /// Returns the events that were sent, in their order.
    fn events(&self) -> Result<Vec<Value>> {
        (0..)
            .map(|number| self.dir.path().join(format!("event{number}")))
            .take_while(|path| path.exists())
            .map(|path| Ok(serde_json::from_slice(&std::fs::read(path)?)?))
            .collect()
    }

    fn run(&self, script: &str, arguments: &[&str], endpoint: &str, input: &str) -> Result<Output> {
        self.run_with(&[], script, arguments, endpoint, input)
    }

    /// Runs a script like [`Self::run`], but at a terminal.
    fn run_at_terminal(&self, script: &str, arguments: &[&str], endpoint: &str, input: &str) -> Result<Output> {
        const IN_TERMINAL: &str = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
        let python = venv().join("bin/python").display().to_string();
        self.run_with(&["-c", IN_TERMINAL, &python], script, arguments, endpoint, input)
    }

    fn run_with(
        &self,
        wrapper: &[&str],
        script: &str,
        arguments: &[&str],
        endpoint: &str,
        input: &str,
    ) -> Result<Output> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut child = Command::new(venv().join("bin/python"))
            .args(wrapper)
            .arg(workspace().join("ops").join(script))
            .args(arguments)
            .envs(CREDENTIALS)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL", endpoint)
            .env("NO_PROXY", "*")
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
    let simulator = Novi::start(Directory::default(), Private::default()).await?;
    let (novi, api) = (simulator.state().key.clone(), simulator.root());
    let novi = novi.as_str();
    let [mailman, key, jwt] = ["mailman-pass", "frontend-key-of-this-test", "jwt-secret-of-at-least-32-bytes-1"];
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
        novi,
        &api,
        probe,
        &keys,
        jwt,
        "https://lists.example.org/mailman-api",
        "restadmin",
        mailman,
        &format!("@{}", file.display()),
        // Generates the key of the ledger.
        "",
        "",
    ]
    .join("\n");
    let output = operator.run("novi-bridge", &["parameters", "--prefix", "/idaa"], &moto.url(), &(input + "\n"))?;
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("10 written"), "{}", text(&output));
    // Novi was asked once, with the key, before its root was written.
    assert!(text(&output).contains("\n  Novi answered.\n  written"), "{}", text(&output));
    assert_eq!(simulator.state().calls.len(), 1);
    let ledger_key = moto.parameter_value("/idaa/ledger_key").await?.context("it was generated")?;
    assert_eq!(STANDARD.decode(&ledger_key)?.len(), 32);
    for secret in [novi, probe, key, jwt, mailman, group, "owner@example.org", &ledger_key] {
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
        ("ledger_key", "SecureString"),
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

    // Replacing one parameter with fewer mappings, and invalid inputs.
    let mapping = json!({"group_guid": group, "list_id": "a@lists.example.org", "keep": ["owner@example.org"],
        "max_removal_percent": 100, "max_growth_percent": null, "may_be_empty": true, "removals": false});
    let input = format!("{}\n", json!([mapping]));
    let output = operator.run("novi-bridge", &["parameters", "--only", "novi_mailman_sync"], &url, &input)?;
    assert!(text(&output).contains("set, version 1") && text(&output).contains("1 written"), "{}", text(&output));
    assert_eq!(moto.parameter_type("/idaa/novi_mailman_sync/1").await?, None, "the additional part must be deleted");
    let output = operator.run("novi-bridge", &["parameters", "--only", "novi_mailman_sync"], &url, "[]\n")?;
    assert!(!output.status.success() && text(&output).contains("at least one mapping"), "{}", text(&output));
    let output = operator.run(
        "novi-bridge",
        &["parameters", "--only", "api_keys"],
        &url,
        "[{\"name\":\"x\",\"key\":\"hush\"}]\n",
    )?;
    assert!(!output.status.success() && text(&output).contains("shorter than 20") && !text(&output).contains("hush"));
    for (pasted, error) in [
        ("Basic hush", "without `Basic `"),
        ("basic\thush", "without `Basic `"),
        ("\u{201c}hush\u{201d}", "isn't ASCII"),
        ("hu\u{200b}sh", "isn't ASCII"),
        ("\"hush\"", "quotation marks"),
        ("hu sh", "without spaces"),
    ] {
        let output = operator.run(
            "novi-bridge",
            &["parameters", "--only", "novi_idaa_api_key"],
            &url,
            &format!("{pasted}\n"),
        )?;
        assert!(!output.status.success() && text(&output).contains(error), "{}", text(&output));
        assert!(!text(&output).contains("hu"), "{}", text(&output));
    }
    for (entered, error) in [
        ("hush", "shorter than 32 bytes"),
        (&format!(r#"["{jwt}", "hush"]"#), "secret 2 is shorter than 32 bytes"),
        (&format!("[{jwt}"), "invalid JSON at character 2"),
        ("[]", "a JSON array of secrets"),
        (r#"["hush", 5]"#, "a JSON array of secrets"),
        (&format!("hush {jwt}"), "without spaces"),
    ] {
        let output =
            operator.run("novi-bridge", &["parameters", "--only", "jwt_secret"], &url, &format!("{entered}\n"))?;
        assert!(!output.status.success() && text(&output).contains(error), "{}", text(&output));
        assert!(!text(&output).contains("hush") && !text(&output).contains(jwt), "{}", text(&output));
    }
    let secrets = format!("[\"{jwt}\", \"{jwt}-and-the-next-one\"]\n");
    let output = operator.run("novi-bridge", &["parameters", "--only", "jwt_secret"], &url, &secrets)?;
    assert!(text(&output).contains("1 written"), "{}", text(&output));
    let output = operator.run("novi-bridge", &["parameters", "--only", "jwt_secret"], &url, "-\n")?;
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(moto.parameter_type("/idaa/jwt_secret").await?, None);
    // Pressing only Enter changes nothing.
    let output = operator.run("novi-bridge", &["parameters", "--only", "novi_idaa_api_key"], &url, "\n")?;
    assert!(text(&output).contains("0 written"), "{}", text(&output));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_script_generates_keeps_and_rotates_the_key_of_the_ledger() -> Result<()> {
    let moto = Moto::start()?;
    let operator = Operator::new()?;
    let name = format!("{}/ledger_key", moto.prefix());
    let enter = |input: &str| -> Result<(bool, String)> {
        let arguments = ["parameters", "--prefix", moto.prefix(), "--only", "ledger_key"];
        let output = operator.run("novi-bridge", &arguments, &moto.url(), &format!("{input}\n"))?;
        Ok((output.status.success(), text(&output)))
    };
    let (is_written, printed) = enter("")?;
    assert!(is_written && printed.contains("1 written"), "{printed}");
    let mut keys = vec![moto.parameter_value(&name).await?.context("it was generated")?];
    assert_eq!(STANDARD.decode(&keys[0])?.len(), 32);
    let (is_kept, printed) = enter("")?;
    assert!(is_kept && printed.contains("0 written"), "{printed}");
    assert_eq!(moto.parameter_value(&name).await?.as_ref(), Some(&keys[0]));

    // The newest key comes first. The older ones still open what they sealed, and at most two of them stay.
    for kept in [1, 2, 2] {
        let (is_written, printed) = enter("rotate")?;
        assert!(is_written && printed.contains("1 written"), "{printed}");
        let rotated: Vec<String> = serde_json::from_str(&moto.parameter_value(&name).await?.context("it exists")?)?;
        assert_eq!(rotated[1..], keys[..kept]);
        assert!(!keys.contains(&rotated[0]) && STANDARD.decode(&rotated[0])?.len() == 32);
        for key in &rotated {
            assert!(!printed.contains(key) && !operator.arguments()?.contains(key), "printed: {printed}");
        }
        keys = rotated;
    }

    let key = STANDARD.encode([7; 32]);
    let unpadded = key.trim_end_matches('=').to_owned();
    for (entered, error) in [
        ("-".to_owned(), "this parameter is required and can't be deleted"),
        ("hush".to_owned(), "key 1 is invalid: expected 32 random bytes in base64"),
        (STANDARD.encode([7; 16]), "key 1 is invalid"),
        (STANDARD.encode([7; 33]), "key 1 is invalid"),
        (format!("{}9=", &unpadded[..42]), "key 1 is invalid"),
        (unpadded.clone(), "key 1 is invalid"),
        (json!([key, "hush"]).to_string(), "key 2 is invalid"),
        ("[]".to_owned(), "or a JSON array of such keys"),
        ("[5]".to_owned(), "or a JSON array of such keys"),
    ] {
        let (is_written, printed) = enter(&entered)?;
        assert!(!is_written && printed.contains(error), "{error}: {printed}");
        assert!(!printed.contains("hush") && !printed.contains(&unpadded[..42]), "{printed}");
    }
    assert_eq!(moto.parameter_value(&name).await?, Some(serde_json::to_string(&keys)?), "nothing was written");
    for entered in [json!([key, keys[0]]).to_string(), key.clone()] {
        let (is_written, printed) = enter(&entered)?;
        assert!(is_written && !printed.contains(&key), "{printed}");
        assert_eq!(moto.parameter_value(&name).await?, Some(entered));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_script_makes_api_keys_and_skips_unchanged_values() -> Result<()> {
    let (moto, operator) = (Moto::start()?, Operator::new()?);
    let stored = async || -> Result<Value> {
        let value = moto.parameter_value(&format!("{}/api_keys", moto.prefix())).await?;
        Ok(serde_json::from_str(&value.context("it exists")?)?)
    };
    let run = |arguments: &[&str], input: &str| {
        let arguments = [&["parameters", "--prefix", moto.prefix()], arguments].concat();
        operator.run("novi-bridge", &arguments, &moto.url(), input)
    };
    // A generated key is the only thing on standard output.
    let output = run(&["--add-key", "frontend"], "")?;
    assert!(output.status.success(), "{}", text(&output));
    let frontend = String::from_utf8(output.stdout)?.trim().to_owned();
    assert!(frontend.len() == 48 && frontend.bytes().all(|byte| byte.is_ascii_hexdigit()), "{frontend}");
    let expected = json!([{"name": "frontend", "key": frontend, "bypass": false}]);
    assert_eq!(stored().await?, expected);
    let output = run(&["--add-key", "frontend"], "")?;
    assert!(!output.status.success() && text(&output).contains("there already is a key"), "{}", text(&output));
    let output = run(&["--only", "api_keys"], &format!("{expected}\n"))?;
    assert!(text(&output).contains("unchanged") && text(&output).contains("0 written"), "{}", text(&output));

    // A key that is pasted as it is belongs to frontend. It doesn't replace those of other callers.
    let pasted = "0123456789abcdef0123456789abcdef0123456789abcdef";
    let output = run(&["--only", "api_keys"], &format!("{pasted}\n"))?;
    assert!(text(&output).contains("1 written") && !text(&output).contains(pasted), "{}", text(&output));
    assert_eq!(stored().await?, json!([{"name": "frontend", "key": pasted, "bypass": false}]));
    let output = run(&["--add-key", "backend"], "")?;
    let backend = String::from_utf8(output.stdout)?.trim().to_owned();
    let output = run(&["--only", "api_keys"], &format!("{pasted}\n"))?;
    assert!(!output.status.success() && text(&output).contains("remove those of backend"), "{}", text(&output));
    let output = run(&["--remove-key", "frontend"], "")?;
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(stored().await?, json!([{"name": "backend", "key": backend, "bypass": false}]));

    // The functions accept the parameter without any caller's key, and would not accept an empty array.
    let arguments = ["parameters", "--prefix", moto.prefix(), "--remove-key", "backend"];
    let output = operator.run_at_terminal("novi-bridge", &arguments, &moto.url(), "y\n")?;
    assert!(output.status.success() && text(&output).contains("rejects every caller"), "{}", text(&output));
    let left = stored().await?;
    assert_eq!(left.as_array().map(Vec::len), Some(1));
    assert_ne!(left[0]["key"], json!(backend));
    for secret in [frontend, pasted.to_owned(), backend] {
        assert!(!operator.arguments()?.contains(&secret), "in the process list: {secret}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_script_warns_if_what_answers_is_not_novi_and_asks_at_a_terminal() -> Result<()> {
    let (moto, operator) = (Moto::start()?, Operator::new()?);
    let novi = Novi::start(Directory::default(), Private::default()).await?;
    let html = NoviFault::Respond(404, "text/html", "<html>Not found</html>".to_owned());
    novi.state().fail("/wrong/", usize::MAX, html);
    let (root, wrong) = (novi.root(), novi.root().replace("/api", "/wrong"));
    let arguments = ["parameters", "--prefix", moto.prefix(), "--only", "novi_api_root_url"];
    let complaint = "an HTML page answered with 404: this is not the API's root.";
    let written = async || moto.parameter_value(&format!("{}/novi_api_root_url", moto.prefix())).await;

    let output = operator.run("novi-bridge", &arguments, &moto.url(), &format!("{wrong}\n"))?;
    let printed = text(&output);
    assert!(output.status.success() && printed.contains(complaint) && printed.contains("WARNING"), "{printed}");
    assert!(!printed.contains("[y/N]") && printed.contains("1 written"), "{printed}");
    assert_eq!(written().await?.as_deref(), Some(wrong.as_str()));

    let question = "Write it anyway? [y/N] ";
    let output = operator.run_at_terminal("novi-bridge", &arguments, &moto.url(), &format!("{root}\n"))?;
    let printed = text(&output);
    assert!(output.status.success() && !printed.contains(question), "{printed}");
    assert!(printed.contains("Novi answered. It was asked without the API key."), "{printed}");
    assert_eq!(written().await?.as_deref(), Some(root.as_str()));
    // After a no, the script prompts again, and Enter keeps the current value.
    let output = operator.run_at_terminal("novi-bridge", &arguments, &moto.url(), &format!("{wrong}\nn\n\n"))?;
    let printed = text(&output);
    assert!(printed.contains(complaint) && printed.contains(question), "{printed}");
    assert!(printed.contains("not written") && printed.contains("0 written"), "{printed}");
    assert_eq!(written().await?.as_deref(), Some(root.as_str()));
    let output = operator.run_at_terminal("novi-bridge", &arguments, &moto.url(), &format!("{wrong}\ny\n"))?;
    assert!(text(&output).contains("1 written"), "{}", text(&output));
    assert_eq!(written().await?.as_deref(), Some(wrong.as_str()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_of_novis_root_says_what_answers_and_nothing_else() -> Result<()> {
    let novi = Novi::start(Directory::default(), Private::default()).await?;
    let (key, hush) = (novi.state().key.clone(), "hush".to_owned());
    let respond = |status, kind, body: &str| NoviFault::Respond(status, kind, body.to_owned());
    let json = "application/json";
    let is_root = "Novi answered";
    let cases = [
        (respond(404, json, ""), true, is_root),
        (respond(404, json, "\u{feff}{\"Message\":\"hush\"}"), true, is_root),
        (respond(200, json, ""), true, is_root),
        (respond(200, json, "null"), true, is_root),
        (respond(200, json, r#"{"data":{}}"#), true, is_root),
        (respond(200, json, r#"{"Email":"hush","Name":null}"#), true, is_root),
        (respond(401, json, r#"{"Message":"hush"}"#), true, "Novi answered, but rejected the API key"),
        (NoviFault::Forbidden, true, "Novi answered, but the API key may not read customers"),
        (NoviFault::RateLimited(None), true, "Novi answered, but too many calls have been made"),
        (respond(404, "text/html", "<p>hush</p>"), false, "an HTML page answered with 404: this is not the API's root"),
        (respond(404, "text/plain", "hush"), false, "a response that is not JSON answered with 404: this is not the"),
        (respond(200, "text/html", "<p>hush</p>"), false, "an HTML page answered with 200: this is not the API's root"),
        (respond(200, json, r#"{"hush":1}"#), false, "JSON answered with 200: this is not the API's root"),
        (respond(200, json, "[1]"), false, "JSON answered with 200: this is not the API's root"),
        (respond(401, "text/html", "<p>hush</p>"), false, "an HTML page answered with 401: this is not the API's root"),
        (
            respond(503, "text/html", "<p>hush</p>"),
            false,
            "an HTML page answered with 503: Novi or a proxy in front of",
        ),
        (NoviFault::BlockedByCdn, false, "an HTML page answered with 403: a CDN or a firewall may refuse this machine"),
        (NoviFault::BlockedByCdnInJson, false, "JSON answered with 403: a CDN or a firewall may refuse this machine"),
        (
            NoviFault::Redirect("https://login.example.org/hush?hush".to_owned()),
            false,
            "a redirect to another host, login.example.org answered with 302. Novi's API never redirects",
        ),
        (
            NoviFault::Redirect("/hush".to_owned()),
            false,
            "a redirect to another URL of the same host answered with 302",
        ),
        (NoviFault::EndlessBody, false, "a response that is not JSON answered with 200: this is not the API's root"),
        (NoviFault::Disconnect, false, "nothing answered: the connection was closed"),
        (NoviFault::NoResponse, false, "nothing answered: the request timed out"),
    ];
    let mut calls: Vec<Value> = Vec::new();
    let mut expected = Vec::new();
    for (number, (fault, is_novi, answer)) in cases.into_iter().enumerate() {
        novi.state().fail(&format!("/case{number}/"), usize::MAX, fault);
        calls.push(json!([format!("{}/case{number}/", novi.root()), key]));
        expected.push((is_novi, answer));
    }
    for (root, key, is_novi, answer) in [
        (novi.root(), Some(&key), true, is_root),
        (format!("{}/", novi.root()), Some(&key), true, is_root),
        (novi.root(), None, true, "Novi answered. It was asked without the API key"),
        (novi.root(), Some(&hush), true, "Novi answered, but rejected the API key"),
        // Plain HTTP to something else than a loopback address.
        (
            novi.root().replace("127.0.0.1", "0.0.0.0"),
            Some(&key),
            true,
            "Novi answered. It was asked without the API key",
        ),
        ("http://127.0.0.1:9/api".to_owned(), Some(&hush), false, "nothing answered: the connection was refused"),
        ("https://hush.invalid/api".to_owned(), Some(&hush), false, "nothing answered: the host name was not found"),
        (novi.root().replace("http:", "https:"), Some(&hush), false, "nothing answered: TLS failed"),
        (format!("{}/hush hush", novi.root()), Some(&hush), false, "nothing answered: the URL is invalid"),
    ] {
        calls.push(json!([root, key]));
        expected.push((is_novi, answer));
    }
    let program = "import json, sys\nfrom novi_bridge import novi_root\ncases = json.load(sys.stdin)\nprint(json.dumps([novi_root.check(root, \
                   key, 10 if 'case22' not in root else 1) for root, key in cases]))\n";
    let answers: Vec<(bool, String)> = serde_json::from_value(run_python(program, &json!(calls))?)?;
    assert_eq!(answers.len(), expected.len());
    for (call, ((is_novi, answer), expected)) in calls.iter().zip(answers.iter().zip(expected)) {
        assert!((*is_novi, answer.starts_with(expected.1)) == (expected.0, true), "{call}: {is_novi}, {answer}");
        assert!(!answer.contains("hush") && !answer.contains(&key), "{answer}");
    }
    // No redirect was followed, and each root was asked once.
    assert_eq!(novi.state().count("/case"), 23);
    assert_eq!(novi.state().count("hush"), 0);
    Ok(())
}

/// Runs a program that can import the operator's scripts, with `input` in JSON. Returns what it prints.
fn run_python(program: &str, input: &Value) -> Result<Value> {
    let mut child = Command::new(venv().join("bin/python"))
        .args(["-B", "-c", program])
        .env("PYTHONPATH", workspace().join("ops"))
        .env("NO_PROXY", "*")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("the child has a standard input")?.write_all(input.to_string().as_bytes())?;
    Ok(serde_json::from_slice(&child.wait_with_output()?.stdout)?)
}

#[test]
fn parameters_script_rejects_mappings_that_the_mirror_would_reject() -> Result<()> {
    let mapping = json!({"group_guid": "39120341-3c8e-47b0-9a40-45b5659b2044", "list_id": "members@lists.example.org",
        "keep": ["owner@example.org"], "max_removal_percent": 100, "max_growth_percent": 100_000, "may_be_empty": true,
        "removals": false, "resubscribe": false});
    let all_null = json!({"group_guid": mapping["group_guid"], "list_id": "a-b_c+d.lists.example.org", "keep": null,
        "max_removal_percent": null, "max_growth_percent": null, "may_be_empty": null, "removals": null});
    let expected = [
        ("group_guid", json!("hush"), "group_guid of mapping 2 is invalid: expected a hyphenated UUID"),
        ("list_id", json!("hush"), "list_id of mapping 2 is invalid: expected a list id"),
        ("list_id", json!("hush@localhost"), "list_id of mapping 2 is invalid: expected a list id"),
        ("list_id", json!("hush@a@example.org"), "list_id of mapping 2 is invalid: expected a list id"),
        ("list_id", json!(5), "list_id of mapping 2 is invalid: expected a list id"),
        ("keep", json!("hush@example.org"), "keep of mapping 2 is invalid: expected an array of addresses"),
        ("keep", json!(["hush"]), "keep of mapping 2 is invalid: expected an array of addresses"),
        ("max_removal_percent", json!(101), "max_removal_percent of mapping 2 is invalid: expected a whole number"),
        ("max_growth_percent", json!(true), "max_growth_percent of mapping 2 is invalid: expected a whole number"),
        ("max_growth_percent", json!(1.5), "max_growth_percent of mapping 2 is invalid: expected a whole number"),
        ("may_be_empty", json!("hush"), "may_be_empty of mapping 2 is invalid: expected true or false"),
        ("removals", json!(0), "removals of mapping 2 is invalid: expected true or false"),
        ("resubscribe", json!("no"), "resubscribe of mapping 2 is invalid: expected true or false"),
        ("hush@example.org", json!(true), "mapping 2 has an unknown key: expected one of group_guid"),
    ];
    let mut inputs = vec![json!([mapping, all_null]), json!([])];
    for (key, value, _) in &expected {
        let mut invalid = mapping.clone();
        invalid[*key] = value.clone();
        inputs.push(json!([mapping, invalid]));
    }
    // One process for all of them, because starting the script takes seconds.
    let program = "import json, sys\nfrom novi_bridge import parameter_values\nerrors = []\nfor mappings in json.load(sys.stdin):\n    try:\n        \
                   parameter_values.mappings(json.dumps(mappings))\n        errors.append(None)\n    \
                   except parameter_values.InvalidValue as error:\n        errors.append(str(error))\nprint(json.dumps(errors))\n";
    let errors: Vec<Option<String>> = serde_json::from_value(run_python(program, &json!(inputs))?)?;
    let errors: Vec<String> = errors.into_iter().map(Option::unwrap_or_default).collect();
    assert_eq!(errors[0], "", "a valid array");
    assert!(errors[1].contains("at least one mapping"), "{}", errors[1]);
    assert_eq!(errors.len(), expected.len() + 2);
    for ((_, _, expected), error) in expected.iter().zip(&errors[2..]) {
        assert!(error.starts_with(expected) && !error.contains("hush"), "{error}");
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
        operator.run("novi-bridge", &[&["run", "--function", "function"], arguments].concat(), &endpoint, input)
    };

    let output = invoke(&["--dry-run"], "")?;
    assert!(output.status.success(), "{}", text(&output));
    let table = text(&output);
    assert!(table.starts_with("ok (dry run: nothing was written), 14 calls to Novi and 3 to Mailman in"), "{table}");
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
    let output = invoke(&["--show"], "")?;
    let shown = text(&output);
    assert!(!output.status.success() && shown.contains(&format!("{list}: 0 would join, 11 would leave")), "{shown}");
    let leavers: Vec<String> = env.mailman.roster(&list, "member").await?.into_keys().collect();
    for address in &leavers {
        let row = shown.lines().find(|line| line.starts_with("leaves ") && line.contains(address.as_str()));
        assert!(row.is_some_and(|row| row.len() > "leaves  ".len() + address.len()), "{address}: {shown}");
    }
    let output = invoke(&["--force", &list], "n\n")?;
    assert!(!output.status.success() && text(&output).contains("Apply exactly this? [y/N] "), "{}", text(&output));
    assert_eq!(env.mailman.roster(&list, "member").await?.len(), 11, "the answer was no");
    let output = invoke(&["--force", &list], "y\n")?;
    assert!(output.status.success() && text(&output).contains("forced"), "{}", text(&output));
    assert!(env.mailman.roster(&list, "member").await?.is_empty());
    let output = invoke(&["--force", &list, "--yes"], "")?;
    assert!(output.status.success() && text(&output).contains("There is nothing to force."), "{}", text(&output));
    for address in &leavers {
        assert!(!operator.arguments()?.contains(address.as_str()), "an address was in the process list");
    }

    let output = invoke(&["--list", "other.lists.example.org"], "")?;
    assert!(
        text(&output).contains("the mirror did not run") && text(&output).contains("no mapping names"),
        "{}",
        text(&output)
    );
    Ok(())
}

const LIST: &str = "members.lists.example.org";

/// Returns what the mirror reports of a list, with `changes` to it.
fn list_report(changes: &Value) -> Value {
    let mut list = json!({
        "list_id": LIST, "status": "ok", "wanted": 9, "roster": 7, "subscribed": 0, "unsubscribed": 0, "moved": 0, "kept": 0,
        "withheld": 0,
        "skipped": {"inactive": 0, "opted_out": 0, "no_email": 0, "invalid_email": 0, "not_found": 0, "unknown": 0,
            "not_yet_read": 0, "duplicate": 0, "left": 0},
        "rejected": {"invalid": 0, "banned": 0, "other": 0}, "reason": null,
    });
    list.as_object_mut().into_iter().for_each(|list| list.extend(changes.as_object().cloned().unwrap_or_default()));
    list
}

fn run_report(status: &str, dry_run: bool, lists: &[Value]) -> Value {
    json!({"status": status, "dry_run": dry_run, "lists": lists, "ledger": null, "novi_calls": 12, "mailman_calls": 3,
        "seconds": 1.25})
}

/// A blocked list, as `show` reports it.
fn blocked() -> Value {
    let event = json!({"force": {LIST: {"leaves": 4, "unknown": 1}}});
    let mut list = list_report(&json!({
        "status": "blocked",
        "reason": format!("Blocked because 4 of 7 addresses would leave. If the plan is right, invoke once with the event {event}"),
        "joins": ["ada@example.org", "bea@example.org"],
        "leaves": ["cyd@example.org", "dot@example.org", "eve@example.org", "fay@example.org"],
        "moves": [],
        "leave_reasons": {"cyd@example.org": "inactive", "dot@example.org": "opted_out", "eve@example.org": "not_in_group",
            "fay@example.org": "unknown_address"},
    }));
    list["skipped"]["unknown"] = json!(1);
    list
}

#[test]
fn show_option_prints_who_would_join_and_leave_and_why() -> Result<()> {
    let unchanged = list_report(&json!({"list_id": "other.lists.example.org", "joins": [], "leaves": [], "moves": [],
        "leave_reasons": {}}));
    let operator = Operator::with_results(&[run_report("blocked", true, &[blocked(), unchanged])])?;
    let output = operator.invoke_mirror(&["--show"], "")?;
    assert!(!output.status.success(), "a calling script must see that a list is blocked");
    assert_eq!(operator.events()?, [json!({"show": true})]);
    let printed = text(&output);
    let (_, table) =
        printed.split_once(&format!("\n{LIST}: 2 would join, 4 would leave\n")).context(printed.clone())?;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.splitn(3, "  ").map(str::trim).collect()).collect();
    assert_eq!(
        rows,
        [
            ["change", "address", "why"],
            ["joins", "ada@example.org", "an active member of the list's groups"],
            ["joins", "bea@example.org", "an active member of the list's groups"],
            ["leaves", "cyd@example.org", "not active in Novi, or without a status that counts"],
            ["leaves", "dot@example.org", "unsubscribed from emails in Novi"],
            ["leaves", "eve@example.org", "known to Novi, but not in a group of this list"],
            ["leaves", "fay@example.org", "no record that was read has this address"],
        ],
        "{printed}"
    );
    assert!(!printed.contains("other.lists.example.org: "), "it has no changes: {printed}");
    Ok(())
}

#[test]
fn force_option_asks_and_sends_exactly_what_it_showed() -> Result<()> {
    let show = json!({"show": true, "lists": [LIST]});
    let force = json!({"force": {LIST: {"joins": 2, "leaves": 4, "unknown": 1}}, "lists": [LIST]});
    let shown = run_report("blocked", true, &[blocked()]);
    let applied = run_report(
        "ok",
        false,
        &[list_report(&json!({"subscribed": 2, "unsubscribed": 4,
        "reason": "The plan was forced although 4 of 7 addresses would leave."}))],
    );
    for (arguments, input, is_sent) in [
        (&["--force", LIST][..], "y\n", true),
        (&["--force", LIST], "Yes\n", true),
        (&["--force", LIST, "--yes"], "", true),
        (&["--force", LIST], "n\n", false),
        (&["--force", LIST], "\n", false),
        (&["--force", LIST], "", false),
    ] {
        let operator = Operator::with_results(&[shown.clone(), applied.clone()])?;
        let output = operator.invoke_mirror(arguments, input)?;
        let printed = text(&output);
        assert!(printed.contains(&format!("{LIST}: 2 would join, 4 would leave")), "{printed}");
        assert!(printed.contains("This allows at most 2 joins, 4 leaves, 1 unknown."), "{printed}");
        assert!(printed.contains("If they may be readable in a later run, wait."), "{printed}");
        assert_eq!(printed.contains("Apply exactly this? [y/N] "), arguments.len() == 2, "{printed}");
        let expected = if is_sent { vec![show.clone(), force.clone()] } else { vec![show.clone()] };
        assert_eq!(operator.events()?, expected, "{arguments:?} {input:?}: {printed}");
        assert_eq!(output.status.success(), is_sent, "{printed}");
        assert_eq!(printed.contains("The plan was forced"), is_sent, "{printed}");
        assert_eq!(printed.contains("novi-bridge: nothing was written"), !is_sent, "{printed}");
    }
    Ok(())
}

/// The event of the second run is the first run's, so a plan that has grown since is blocked again.
#[test]
fn force_option_reports_a_list_that_is_blocked_again() -> Result<()> {
    let operator = Operator::with_results(&[
        run_report("blocked", true, &[blocked()]),
        json!({"errorType": "Mirror.blocked", "errorMessage":
            format!("run ended with status blocked: {}", run_report("blocked", false, &[blocked()]))}),
    ])?;
    let output = operator.invoke_mirror(&["--force", LIST], "y\n")?;
    assert!(!output.status.success());
    let (_, second) = text(&output).split_once("[y/N] ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap_or_default();
    assert!(second.contains("blocked, 12 calls") && second.contains("Blocked because 4 of 7"), "{second}");
    Ok(())
}

#[test]
fn force_option_sends_nothing_if_there_is_nothing_to_force_or_not_all_is_shown() -> Result<()> {
    let missing =
        "Blocked because a group_guid that is mapped to this list does not exist in Novi. Correct the mapping.";
    let mut cut = blocked();
    cut["left_out"] = json!(1_200);
    for (status, list, success, message) in [
        (
            "ok",
            list_report(&json!({"joins": [], "leaves": [], "moves": [], "leave_reasons": {}})),
            true,
            "There is nothing to force.",
        ),
        (
            "ok",
            list_report(
                &json!({"subscribed": 1, "joins": ["ada@example.org"], "leaves": [], "moves": [], "leave_reasons": {}}),
            ),
            true,
            "There is nothing to force.",
        ),
        (
            "blocked",
            list_report(&json!({"status": "blocked", "reason": missing, "joins": [], "leaves": [], "moves": [],
            "leave_reasons": {}})),
            false,
            "There is nothing to force.",
        ),
        (
            "failed",
            list_report(&json!({"status": "failed", "reason": "Mailman has no list with this id."})),
            false,
            "There is nothing to force.",
        ),
        ("blocked", cut, false, "not forced, because the table isn't complete"),
    ] {
        let operator = Operator::with_results(&[run_report(status, true, &[list])])?;
        let output = operator.invoke_mirror(&["--force", LIST, "--yes"], "")?;
        let printed = text(&output);
        assert!(printed.contains(message), "{printed}");
        assert_eq!(output.status.success(), success, "{printed}");
        assert_eq!(operator.events()?.len(), 1, "{printed}");
        assert_eq!(printed.contains("5,000 addresses"), message.starts_with("not"), "{printed}");
        assert_eq!(printed.contains("1200 more are left out"), message.starts_with("not"), "{printed}");
    }
    // Options that contradict each other, or would ask for less than the operator thinks.
    for (arguments, error) in [
        (&["--force", LIST, "--list", LIST][..], "leave out --list"),
        (&["--force", LIST, "--dry-run"], "not allowed with"),
        (&["--show", "--explain"], "not allowed with"),
        (&["--yes"], "--yes needs --force"),
    ] {
        let operator = Operator::with_results(&[])?;
        let output = operator.invoke_mirror(arguments, "")?;
        assert!(!output.status.success() && text(&output).contains(error), "{}", text(&output));
        assert!(operator.events()?.is_empty());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn force_option_applies_the_plan_of_every_kind_of_list_that_waits() -> Result<()> {
    let mut lists = Lists::default();
    let kinds = [
        ("Blocked because 7 of 20", people(13, 7, 2)),
        ("Blocked because 8 addresses would be subscribed", people(6, 1, 8)),
        ("Held because 7 of 20", People { stay: 13, leave: 7, unknown: 1, ..People::default() }),
        ("Held because 6 addresses would be subscribed", People { stay: 6, join: 6, unknown: 2, ..People::default() }),
        ("could not be read", People { stay: 20, leave: 2, join: 1, unknown: 1, ..People::default() }),
        ("A group of this list is empty while others are not", people(8, 1, 1)),
    ];
    for (_, people) in kinds {
        lists.add(people, json!({}));
    }
    lists.add_group(kinds.len() - 1, 0, json!({}));
    let (env, lists) = lists.start(&[]).await?;
    let operator = Operator::new()?;
    for ((reason, _), test) in kinds.iter().zip(&lists) {
        let arguments = ["run", "--function", "function", "--force", &test.id, "--yes"];
        let output = operator.run("novi-bridge", &arguments, &env.function.endpoint(), "")?;
        let printed = text(&output);
        assert!(output.status.success() && printed.contains(reason), "{printed}");
        for address in &test.leave {
            let row = printed.lines().find(|line| line.starts_with("leaves ") && line.contains(address.as_str()));
            assert!(row.is_some_and(|row| row.ends_with("no record that was read has this address")), "{printed}");
        }
        test.expect(&env, &test.wanted(&env), &printed).await?;
    }
    Ok(())
}

#[test]
fn lists_that_the_report_only_counts_are_counted() -> Result<()> {
    let mut report =
        run_report("partial", false, &[list_report(&json!({"status": "partial", "reason": "1 record is unknown."}))]);
    report["ok_lists"] = json!(990);
    let output = Operator::with_results(&[report])?.invoke_mirror(&[], "")?;
    assert!(output.status.success() && text(&output).contains("and 990 more lists that are ok"), "{}", text(&output));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_script_prints_what_to_fix() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 12);
    let mappings = json!([{"group_guid": group, "list_id": "members.lists.example.org"}]);
    let env = Mirror::start(directory, mappings, &[]).await?;
    let operator = Operator::new()?;
    let probe = || operator.run("novi-bridge", &["probe", "--function", "function"], &env.function.endpoint(), "");

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
