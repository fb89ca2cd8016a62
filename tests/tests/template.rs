//! The deployment as CloudFormation would create it: permissions, encryption and settings, for each choice of cache.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::function::venv;
use tests::redis::{Kind, Redis};
use tests::{shared_servers, workspace};

/// The resources that CloudFormation would create, by name.
type Resources = BTreeMap<String, Value>;

/// Returns the processed template, or an `Error`, for each set of parameters. Importing SAM's translator takes longer
/// than all of them.
fn process_all(parameters: &[&Value]) -> Result<Vec<Value>> {
    let script = [venv().join("bin/python"), workspace().join("tests/process_template.py")];
    let program = shared_servers::python_program("process_template", &script);
    let output = Command::new(&program[0])
        .args(&program[1..])
        .arg(workspace().join("template.yaml"))
        .arg(json!(parameters).to_string())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let templates: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    ensure!(templates.len() == parameters.len(), "expected {} templates, got {}", parameters.len(), templates.len());
    Ok(templates)
}

/// Returns the resources for each set of parameters, none of which may be rejected.
fn resources_for_all(parameters: &[&Value]) -> Result<Vec<Resources>> {
    let resources = |mut template: Value| {
        ensure!(template.get("Error").is_none(), "{template}");
        Ok(serde_json::from_value(template["Resources"].take())?)
    };
    process_all(parameters)?.into_iter().map(resources).collect()
}

/// Asserts that CloudFormation would reject each set of parameters, with an error that contains the text.
fn assert_rejected(expected: &[(Value, &str)]) -> Result<()> {
    let templates = process_all(&expected.iter().map(|(parameters, _)| parameters).collect::<Vec<_>>())?;
    for ((parameters, text), template) in expected.iter().zip(templates) {
        let error = template["Error"].as_str().unwrap_or_default();
        assert!(error.contains(text), "{parameters}: expected {text:?}, got {error:?}");
    }
    Ok(())
}

/// Returns the resources for the default parameters.
fn default_resources() -> Result<Resources> {
    resources_for_all(&[&json!({})])?.pop().context("there is one template")
}

/// Returns the name, the parameters and the resources of every choice.
fn deployments() -> Result<Vec<(&'static str, Value, Resources)>> {
    let choices = choices();
    let all = resources_for_all(&choices.iter().map(|(_, parameters)| parameters).collect::<Vec<_>>())?;
    Ok(choices.into_iter().zip(all).map(|((choice, parameters), resources)| (choice, parameters, resources)).collect())
}

/// Returns every choice of cache, and a choice with everything optional.
fn choices() -> Vec<(&'static str, Value)> {
    let network = json!({"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2", "SecurityGroupIds": "sg-1"});
    let with = |more: Value| {
        let mut all = network.clone();
        all.as_object_mut().into_iter().for_each(|all| all.extend(more.as_object().cloned().unwrap_or_default()));
        all
    };
    vec![
        ("serverless", json!({})),
        ("serverless with an existing address", json!({"AllocationId": "eipalloc-1"})),
        ("serverless in an existing network", with(json!({}))),
        ("existing by id and IAM", with(json!({"Cache": "existing", "CacheId": "shared", "CacheIamUser": "bridge"}))),
        ("existing by id and password", with(json!({"Cache": "existing", "CacheId": "shared"}))),
        ("existing by URL", with(json!({"Cache": "existing", "CacheUrl": "rediss://cache.example.org:6379"}))),
        ("none", json!({"Cache": "none"})),
        (
            "none, with everything optional",
            json!({
                "Cache": "none", "KmsKeyArn": "arn:aws:kms:us-east-1:123456789012:key/1", "Tracing": "Active",
                "DomainName": "members.example.org", "CertificateArn": "arn:aws:acm:us-east-1:123456789012:certificate/1",
                "CorsAllowOrigins": "https://app.example.org,https://www.example.org", "AlarmEmail": "a@example.org",
                "MonthlyBudget": 50, "MirrorApply": "true", "ReserveConcurrency": "false", "BasePath": "/members/v1",
            }),
        ),
        ("none, behind a proxy with a base path", json!({"Cache": "none", "BasePath": "/members"})),
        ("none, without reports", json!({"Cache": "none", "Reports": "none"})),
    ]
}

/// Returns whether the stack creates a network of its own for this choice.
fn creates_network(choice: &str) -> bool {
    ["serverless", "serverless with an existing address"].contains(&choice)
}

fn list(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::String(one) => vec![one.clone()],
        _ => Vec::new(),
    }
}

/// Returns all policy statements of a role: inline ones and those of attached policies.
fn statements(resources: &BTreeMap<String, Value>, role: &str) -> Vec<Value> {
    let own = resources[role]["Properties"]["Policies"].as_array().cloned().unwrap_or_default();
    let attached = resources.values().filter(|resource| {
        resource["Type"] == "AWS::IAM::Policy" && list(&resource["Properties"]["Roles"]).iter().any(|name| name == role)
    });
    let policies = own.into_iter().chain(attached.map(|resource| resource["Properties"].clone()));
    policies.flat_map(|policy| policy["PolicyDocument"]["Statement"].as_array().cloned().unwrap_or_default()).collect()
}

/// Returns the actions of a service that a role is allowed, and the resources of each.
fn allowed(resources: &BTreeMap<String, Value>, role: &str, service: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut allowed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for statement in statements(resources, role).iter().filter(|statement| statement["Effect"] == "Allow") {
        for action in list(&statement["Action"]).into_iter().filter(|action| action.starts_with(service)) {
            allowed.entry(action).or_default().extend(list(&statement["Resource"]));
        }
    }
    allowed
}

/// Returns the parameters that a function's code reads.
fn names_in_code(function: &str) -> Result<BTreeSet<String>> {
    let code = std::fs::read_to_string(workspace().join(format!("functions/{function}/src/parameters.rs")))?;
    let names = code.split_once("const NAMES").and_then(|(_, rest)| rest.split_once("];")).context("no NAMES")?.0;
    Ok(names.split('"').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Returns the environment variables that a function's code reads.
fn variables_in_code(function: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for file in [format!("functions/{function}/src/settings.rs"), "shared/src/settings.rs".to_owned()] {
        let code = std::fs::read_to_string(workspace().join(&file))?;
        let code = code.split_once("#[cfg(test)]").map_or(code.as_str(), |(code, _)| code);
        let is_name = |text: &&str| text.contains('_') && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        names.extend(code.split('"').skip(1).step_by(2).filter(is_name).map(str::to_owned));
    }
    // The only names without an underscore, and the first one has a file of its own.
    for (name, file) in [("LEDGER", "ledger/location.rs"), ("REPORTS", "settings.rs")] {
        let code = std::fs::read_to_string(workspace().join("functions/mirror/src").join(file))?;
        names.extend((function == "mirror" && code.contains(&format!("\"{name}\""))).then(|| name.to_owned()));
    }
    Ok(names)
}

#[test]
fn template_passes_cfn_lint() -> Result<()> {
    let lint = Command::new(venv().join("bin/cfn-lint")).arg(workspace().join("template.yaml")).output()?;
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
    Ok(())
}

#[test]
fn roles_have_only_the_permissions_that_their_functions_need() -> Result<()> {
    for (choice, parameters, resources) in deployments()? {
        for role in ["VerifyRole", "MirrorRole", "SchedulerRole"] {
            for statement in statements(&resources, role).iter().filter(|statement| statement["Effect"] == "Allow") {
                let actions = list(&statement["Action"]);
                assert!(actions.iter().all(|action| !action.contains('*')), "{choice}: {role}: {statement}");
                // AWS doesn't support narrower resources for these.
                let requires_wildcard =
                    actions.iter().all(|action| action.starts_with("ec2:") || action.starts_with("xray:"));
                let resources = list(&statement["Resource"]);
                let is_wide = |resource: &String| resource.contains('*') || resource.is_empty();
                assert!(requires_wildcard || !resources.iter().any(is_wide), "{choice}: {role}: {statement}");
            }
            assert!(resources[role]["Properties"].get("ManagedPolicyArns").is_none(), "{choice}: {role}");
        }
        for (function, role) in [("verify", "VerifyRole"), ("mirror", "MirrorRole")] {
            let arn = |name: &String| format!("arn:aws:ssm:us-east-1:123456789012:parameter/idaa/{name}");
            let mut expected =
                BTreeMap::from([("ssm:GetParameters".to_owned(), names_in_code(function)?.iter().map(arn).collect())]);
            if function == "mirror" {
                let multipart = BTreeSet::from([arn(&"novi_mailman_sync".to_owned())]);
                expected.insert("ssm:GetParametersByPath".to_owned(), multipart);
            }
            assert_eq!(allowed(&resources, role, "ssm:"), expected, "{choice}: only exact names");

            let key_actions: Vec<String> = allowed(&resources, role, "kms:").into_keys().collect();
            // The bucket of the ledger is encrypted with the same key.
            let expected =
                if function == "mirror" { &["kms:Decrypt", "kms:GenerateDataKey"][..] } else { &["kms:Decrypt"] };
            let has_key = parameters.get("KmsKeyArn").is_some();
            assert_eq!(key_actions, if has_key { expected } else { &[] }, "{choice}");
            let object = BTreeSet::from(["LedgerBucket.Arn/ledger".to_owned()]);
            let expected = BTreeMap::from([
                ("s3:GetObject".to_owned(), object.clone()),
                ("s3:ListBucket".to_owned(), BTreeSet::from(["LedgerBucket.Arn".to_owned()])),
                ("s3:PutObject".to_owned(), object),
            ]);
            let s3 = allowed(&resources, role, "s3:");
            assert_eq!(s3, if function == "mirror" { expected } else { BTreeMap::new() }, "{choice}: only the ledger");
            // Also without a network: Lambda deletes the interfaces in the one that the function has left.
            assert!(allowed(&resources, role, "ec2:").contains_key("ec2:DeleteNetworkInterface"), "{choice}");
            let publish = BTreeMap::from([("sns:Publish".to_owned(), BTreeSet::from(["Alarms".to_owned()]))]);
            let sends_reports = function == "mirror" && parameters["Reports"] != "none";
            let sns = allowed(&resources, role, "sns:");
            assert_eq!(sns, if sends_reports { publish } else { BTreeMap::new() }, "{choice}: only the topic");
            let own: Vec<Value> = statements(&resources, role);
            let denied =
                own.iter().filter(|statement| statement["Effect"] == "Deny" && statement.get("Condition").is_some());
            assert_eq!(denied.count(), 1, "{choice}: the code itself must not manage network interfaces");
            let existing = |kind: &str| format!("arn:aws:elasticache:us-east-1:123456789012:{kind}");
            let (serverless, group) = (existing("serverlesscache:shared"), existing("replicationgroup:shared"));
            let created = "MemberCache.ARN".to_owned();
            // A cache that the stack created isn't a replication group.
            let expected: &[(&str, &[String])] = match choice {
                _ if choice.starts_with("serverless") => &[
                    ("Connect", &[created.clone(), "CacheUser.Arn".to_owned()]),
                    ("DescribeServerlessCaches", &[created]),
                ],
                "existing by id and IAM" => &[
                    ("Connect", &[serverless.clone(), group.clone(), existing("user:bridge")]),
                    ("DescribeReplicationGroups", &[group]),
                    ("DescribeServerlessCaches", &[serverless]),
                ],
                "existing by id and password" => {
                    &[("DescribeReplicationGroups", &[group]), ("DescribeServerlessCaches", &[serverless])]
                }
                _ => &[],
            };
            let expected = expected
                .iter()
                .map(|(action, resources)| (format!("elasticache:{action}"), resources.iter().cloned().collect()));
            assert_eq!(allowed(&resources, role, "elasticache:"), expected.collect(), "{choice}");
        }
    }
    Ok(())
}

#[test]
fn template_and_readme_have_exactly_the_variables_that_the_code_reads() -> Result<()> {
    let readme = std::fs::read_to_string(workspace().join("README.md"))?;
    for (choice, _, resources) in deployments()? {
        for (function, name) in [("verify", "Verify"), ("mirror", "Mirror")] {
            let variables = resources[name]["Properties"]["Environment"]["Variables"].clone();
            let mut set: BTreeSet<String> =
                variables.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
            // CONFIG_FILE replaces the SSM path in local runs, and Lambda sets the other one.
            set.extend(["CONFIG_FILE", "AWS_LAMBDA_RUNTIME_API"].map(str::to_owned));
            assert_eq!(set, variables_in_code(function)?, "{choice}: {function}");
            for name in set.iter().filter(|name| !name.starts_with("AWS_")) {
                assert!(readme.contains(&format!("`{name}`")), "the README doesn't document {name}");
            }
        }
    }
    Ok(())
}

/// Totals are for both functions, because they share a key. The rest is for the function that it limits.
#[test]
fn functions_get_their_parts_of_novis_allowance() -> Result<()> {
    let total = [("NOVI_TOTAL_PER_SECOND", 18), ("NOVI_TOTAL_PER_MINUTE", 570), ("NOVI_TOTAL_PER_DAY", 95_000)];
    let verify =
        [("VERIFY_NOVI_MAX_PER_MINUTE", 500), ("VERIFY_UNKNOWN_PER_MINUTE", 60), ("VERIFY_UNKNOWN_PER_DAY", 5_000)];
    let mirror = [("NOVI_MAX_PER_SECOND", 10), ("NOVI_MAX_PER_MINUTE", 400), ("NOVI_MAX_PER_DAY", 50_000)];
    for (choice, _, resources) in deployments()? {
        for (name, own) in [("Verify", verify), ("Mirror", mirror)] {
            let variables = resources[name]["Properties"]["Environment"]["Variables"].as_object().cloned();
            let limits: BTreeMap<String, Value> = variables
                .unwrap_or_default()
                .into_iter()
                .filter(|(variable, _)| {
                    ["_PER_SECOND", "_PER_MINUTE", "_PER_DAY"].iter().any(|s| variable.ends_with(s))
                })
                .collect();
            let expected = total.iter().chain(&own).map(|(variable, limit)| ((*variable).to_owned(), json!(limit)));
            assert_eq!(limits, expected.collect(), "{choice}: {name}");
        }
        let throttle = &resources["ApiStage"]["Properties"]["DefaultRouteSettings"];
        let is_above = |limit: &Value| limit.as_u64().is_some_and(|limit| limit >= 5 * 18);
        // Otherwise a few requests without a key would keep members out, although Novi has room.
        assert!(is_above(&throttle["ThrottlingRateLimit"]) && is_above(&throttle["ThrottlingBurstLimit"]), "{choice}");
    }
    Ok(())
}

/// Both functions write entries, so both must keep them for as long.
#[test]
fn stale_records_are_served_for_a_day_unless_turned_off() -> Result<()> {
    for (parameters, expected) in [(json!({}), 86_400), (json!({"CacheStaleSeconds": 0}), 0)] {
        let resources = resources_for_all(&[&parameters])?.pop().context("there is one template")?;
        for name in ["Verify", "Mirror"] {
            let variables = &resources[name]["Properties"]["Environment"]["Variables"];
            assert_eq!(variables["CACHE_STALE_SECONDS"], expected, "{name}");
        }
    }
    Ok(())
}

#[test]
fn functions_accept_the_values_of_the_template() -> Result<()> {
    use shared::settings::{CacheTtls, CommonSettings, Env};
    for (choice, _, resources) in deployments()? {
        for name in ["Verify", "Mirror"] {
            let variables = &resources[name]["Properties"]["Environment"]["Variables"];
            let texts: Vec<(String, String)> = variables
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
                .collect();
            let env: Vec<(&str, &str)> = texts.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let env = Env::of(&env);
            CommonSettings::from_env(&env).map(drop).with_context(|| format!("{choice}: {name}"))?;
            CacheTtls::from_env(&env).map(drop).with_context(|| format!("{choice}: {name}"))?;
        }
    }
    Ok(())
}

#[test]
fn stored_data_is_encrypted_and_expires_and_logs_contain_no_personal_data() -> Result<()> {
    for (choice, _, resources) in deployments()? {
        for (name, resource) in &resources {
            let properties = &resource["Properties"];
            match resource["Type"].as_str().unwrap_or_default() {
                "AWS::SQS::Queue" => {
                    assert_eq!(properties["SqsManagedSseEnabled"], true, "{choice}: {name}");
                    assert!(properties["MessageRetentionPeriod"].is_number(), "{choice}: {name}");
                }
                "AWS::Logs::LogGroup" => assert_eq!(properties["RetentionInDays"], 30, "{choice}: {name}"),
                "AWS::Lambda::Function" => {
                    assert_eq!(properties["LoggingConfig"]["LogFormat"], "JSON", "{choice}: {name}");
                    assert_eq!(properties["Runtime"], "provided.al2023");
                    assert_eq!(properties["Architectures"], json!(["arm64"]));
                }
                "AWS::ElastiCache::User" => assert_eq!(properties["AuthenticationMode"]["Type"], "iam"),
                "AWS::EC2::SecurityGroup" => {
                    for rule in properties["SecurityGroupIngress"].as_array().into_iter().flatten() {
                        assert!(rule.get("CidrIp").is_none(), "{choice}: {name} is open to addresses");
                    }
                }
                _ => {}
            }
        }
        // AWS adds the ARN of any other group to a policy of limited size.
        let group = &resources["ApiLog"]["Properties"]["LogGroupName"];
        assert_eq!(group, "/aws/vendedlogs/apigateway/bridge", "{choice}");
        let format = resources["ApiStage"]["Properties"]["AccessLogSettings"]["Format"].as_str().unwrap_or_default();
        assert!(format.contains("$context.routeKey"));
        for personal in ["path", "identity", "authorizer", "requestOverride", "querystring", "domainName"] {
            assert!(!format.to_lowercase().contains(personal), "{format}");
        }
    }
    Ok(())
}

#[test]
fn ledger_is_private_versioned_and_kept_for_each_choice_of_cache() -> Result<()> {
    for (choice, parameters, resources) in deployments()? {
        let variables = &resources["Mirror"]["Properties"]["Environment"]["Variables"];
        assert_eq!(variables["LEDGER"], "s3://LedgerBucket/ledger", "{choice}");
        assert_eq!(variables["MIRROR_PERIOD_SECONDS"], 3_600, "{choice}");

        let bucket = &resources["LedgerBucket"]["Properties"];
        let public = bucket["PublicAccessBlockConfiguration"].as_object().context("it has an access block")?;
        assert!(public.len() == 4 && public.values().all(|blocks| blocks == true), "{choice}: {public:?}");
        assert_eq!(bucket["OwnershipControls"]["Rules"], json!([{"ObjectOwnership": "BucketOwnerEnforced"}]));
        assert_eq!(bucket["VersioningConfiguration"]["Status"], "Enabled");
        let encryption = &bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"];
        let expected = match parameters.get("KmsKeyArn") {
            Some(key) => json!([{
                "ServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key},
                "BucketKeyEnabled": true,
            }]),
            None => json!([{"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]),
        };
        assert_eq!(encryption, &expected, "{choice}");
        let rule = &bucket["LifecycleConfiguration"]["Rules"][0];
        assert_eq!(
            (&rule["Status"], &rule["NoncurrentVersionExpiration"]["NoncurrentDays"]),
            (&json!("Enabled"), &json!(30))
        );
        assert_eq!(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"], 1);
        // The present version never expires.
        assert!(rule.get("ExpirationInDays").is_none(), "{choice}: {rule}");

        let denied = &resources["LedgerBucketPolicy"]["Properties"]["PolicyDocument"]["Statement"];
        let expected = json!([{
            "Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": ["LedgerBucket.Arn", "LedgerBucket.Arn/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }]);
        assert_eq!(denied, &expected, "{choice}: only over TLS");
        for name in ["LedgerBucket", "LedgerBucketPolicy"] {
            let kept = (&resources[name]["DeletionPolicy"], &resources[name]["UpdateReplacePolicy"]);
            assert_eq!(kept, (&json!("Retain"), &json!("Retain")), "{choice}: {name}");
        }

        // S3 responds with 404 to a missing object only if the mirror may list it.
        let own = statements(&resources, "MirrorRole");
        let lists = own.iter().find(|statement| statement["Action"] == "s3:ListBucket").context("it may list")?;
        assert_eq!(lists["Condition"], json!({"StringEquals": {"s3:prefix": "ledger"}}));

        // In a network of the stack's own, the way to S3 is free and leads only to this bucket.
        let endpoint = resources.get("LedgerEndpoint").map(|endpoint| &endpoint["Properties"]);
        assert_eq!(endpoint.is_some(), creates_network(choice), "{choice}");
        if let Some(endpoint) = endpoint {
            assert_eq!(endpoint["VpcEndpointType"], "Gateway");
            assert_eq!(endpoint["RouteTableIds"], json!(["PrivateRoutes"]));
            let policy = endpoint["PolicyDocument"]["Statement"].as_array().cloned().unwrap_or_default();
            let reachable: BTreeSet<String> =
                policy.iter().flat_map(|statement| list(&statement["Resource"])).collect();
            assert_eq!(reachable, BTreeSet::from(["LedgerBucket.Arn", "LedgerBucket.Arn/ledger"].map(str::to_owned)));
        }
    }
    Ok(())
}

/// Lambda deletes a function's network interfaces with the function's role, and the group waits for that.
#[test]
fn roles_outlive_the_network_interfaces_of_their_functions() -> Result<()> {
    for (choice, parameters, resources) in deployments()? {
        let has_network = parameters["Cache"] != "none";
        assert_eq!(resources.contains_key("FunctionGroup"), has_network, "{choice}");
        if has_network {
            assert_eq!(resources["FunctionGroup"]["DependsOn"], json!(["VerifyRole", "MirrorRole"]), "{choice}");
        }
    }
    Ok(())
}

/// Novi may have allowed the address in its CDN, which would lock out a new one.
#[test]
fn fixed_address_outlives_the_stack_and_can_be_brought_along() -> Result<()> {
    let given = json!({"AllocationId": "eipalloc-1"});
    let templates = process_all(&[&json!({}), &given])?;
    for (template, id, created) in [(&templates[0], "Address.AllocationId", true), (&templates[1], "eipalloc-1", false)]
    {
        let (resources, outputs) = (&template["Resources"], &template["Outputs"]);
        // AWS refuses a NAT gateway in a network without an internet gateway.
        let nat = &resources["Nat"];
        assert_eq!((&nat["Properties"]["AllocationId"], &nat["DependsOn"]), (&json!(id), &json!("InternetAttachment")));
        assert_eq!(outputs["FixedAddressAllocationId"], id);
        assert_eq!((resources.get("Address").is_some(), outputs.get("FixedAddress").is_some()), (created, created));
    }
    let own = &templates[0]["Resources"]["Address"];
    assert_eq!(
        (&own["DeletionPolicy"], &own["UpdateReplacePolicy"]),
        (&json!("RetainExceptOnCreate"), &json!("Retain"))
    );
    assert_eq!(own["Properties"]["Tags"], json!([{"Key": "Name", "Value": "bridge"}]), "it can be recognized");
    Ok(())
}

#[test]
fn mirror_is_safe_to_deploy() -> Result<()> {
    for (choice, parameters, resources) in deployments()? {
        let mirror = &resources["Mirror"]["Properties"];
        let writes = parameters.get("MirrorApply").is_some();
        assert_eq!(mirror["Environment"]["Variables"]["MIRROR_APPLY"], writes.to_string(), "{choice}");
        assert_eq!(mirror["Timeout"], 900);
        let reserves = parameters.get("ReserveConcurrency").is_none();
        assert_eq!(mirror.get("ReservedConcurrentExecutions"), reserves.then_some(&json!(1)), "{choice}");
        let asynchronous = &resources["MirrorEventInvokeConfig"]["Properties"];
        assert_eq!(asynchronous["MaximumRetryAttempts"], 0, "the next schedule is the retry");
        assert_eq!(asynchronous["DestinationConfig"]["OnFailure"]["Destination"], "MirrorFailures.Arn");
        let target = &resources["MirrorTimer"]["Properties"]["Target"];
        assert_eq!((&target["DeadLetterConfig"]["Arn"], &target["Input"]), (&json!("DeadLetters.Arn"), &json!("{}")));
        let sends = allowed(&resources, "MirrorRole", "sqs:");
        assert_eq!(sends["sqs:SendMessage"], BTreeSet::from(["MirrorFailures.Arn".to_owned()]));

        // Without a cache, the stack has no network and doesn't pay for one.
        let has_network = resources
            .values()
            .any(|resource| resource["Type"].as_str().is_some_and(|kind| kind.starts_with("AWS::EC2")));
        assert_eq!(has_network, parameters["Cache"] != "none", "{choice}");
        assert_eq!(mirror.get("VpcConfig").is_some(), parameters["Cache"] != "none", "{choice}");
        let nats = resources.values().filter(|resource| resource["Type"] == "AWS::EC2::NatGateway").count();
        assert_eq!(nats, usize::from(creates_network(choice)), "{choice}");
    }
    Ok(())
}

/// What an administrator needs to connect other things to the stack, for each choice of cache.
#[test]
fn outputs_have_the_version_and_what_other_things_connect_to() -> Result<()> {
    let choices = choices();
    let templates = process_all(&choices.iter().map(|(_, parameters)| parameters).collect::<Vec<_>>())?;
    for ((choice, parameters), template) in choices.iter().zip(&templates) {
        let outputs = &template["Outputs"];
        assert_eq!(outputs["Version"], env!("CARGO_PKG_VERSION"), "template.yaml has the version of Cargo.toml");
        let resources = ["AlarmTopic", "DeadLettersQueue", "MirrorFailuresQueue"].map(|output| &outputs[output]);
        assert_eq!(resources, ["Alarms", "DeadLetters", "MirrorFailures"], "{choice}");
        let group = (parameters["Cache"] != "none").then(|| json!("FunctionGroup.GroupId"));
        assert_eq!(outputs.get("FunctionSecurityGroup"), group.as_ref(), "{choice}");
    }
    Ok(())
}

#[test]
fn api_and_function_allow_the_same_cors_origins() -> Result<()> {
    for (choice, _, resources) in deployments()? {
        let api = &resources["Api"]["Properties"]["CorsConfiguration"];
        let function = &resources["Verify"]["Properties"]["Environment"]["Variables"]["CORS_ALLOW_ORIGINS"];
        assert_eq!(list(&api["AllowOrigins"]).join(","), function.as_str().unwrap_or_default(), "{choice}");
        if !api.is_null() {
            // The same headers as in the function's own responses.
            assert_eq!(list(&api["AllowHeaders"]), ["authorization", "x-account-id", "x-api-key"]);
            assert_eq!(list(&api["ExposeHeaders"]), ["retry-after", "x-cache"]);
        }
    }
    Ok(())
}

#[test]
fn base_path_is_the_key_of_the_mapping_or_the_prefix_of_the_routes() -> Result<()> {
    let routes = ["/v3/action/idaa/novi_member/{uuid}", "/health", "/openapi.json"];
    for (choice, parameters, resources) in deployments()? {
        let base = parameters["BasePath"].as_str().unwrap_or_default();
        assert_eq!(resources["Verify"]["Properties"]["Environment"]["Variables"]["BASE_PATH"], base, "{choice}");
        let has_domain = parameters.get("DomainName").is_some();
        if has_domain {
            // A key has no leading slash, and API Gateway removes it before it looks for a route.
            assert_eq!(resources["ApiMapping"]["Properties"]["ApiMappingKey"], base[1..], "{choice}");
        }
        let prefix = if has_domain { "" } else { base };
        let expected: BTreeSet<String> =
            ["", prefix].iter().flat_map(|prefix| routes.map(|route| format!("ANY {prefix}{route}"))).collect();
        let found: BTreeSet<String> = resources
            .values()
            .filter(|resource| resource["Type"] == "AWS::ApiGatewayV2::Route")
            .map(|route| route["Properties"]["RouteKey"].as_str().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(found, expected, "{choice}");
    }
    Ok(())
}

#[test]
fn template_rejects_values_that_the_functions_reject() -> Result<()> {
    let values = [
        ("CorsAllowOrigins", "https://*.example.org"),
        ("CorsAllowOrigins", "https://*"),
        ("CorsAllowOrigins", "https://app.example.org,https://*.example.net"),
        ("MemberStatuses", "current,"),
        ("MemberStatuses", "current;grace_period"),
        ("BasePath", "members"),
        ("BasePath", "/"),
        ("BasePath", "/members/"),
        ("BasePath", "/members//v1"),
        ("BasePath", "/members?v=1"),
        ("BasePath", "/members/../v1"),
    ];
    let errors = values.map(|(parameter, value)| format!("parameter {parameter}={value} is invalid"));
    let sets =
        values.iter().zip(&errors).map(|((parameter, value), error)| (json!({*parameter: value}), error.as_str()));
    assert_rejected(&sets.collect::<Vec<_>>())
}

/// A value that needs another one would otherwise be ignored, and an unwanted network or cache would be created.
#[test]
fn template_rejects_values_that_need_others_and_says_what_to_do() -> Result<()> {
    let (vpc, subnets) = ("vpc-1", "subnet-1,subnet-2");
    assert_rejected(&[
        (json!({"VpcId": vpc}), "VpcId requires SubnetIds. Set SubnetIds to"),
        (json!({"SubnetIds": subnets}), "SubnetIds requires VpcId. Set VpcId to"),
        (json!({"SubnetIds": subnets, "Cache": "none"}), "SubnetIds requires VpcId. Set VpcId to"),
        (
            json!({"VpcId": vpc, "SubnetIds": subnets, "AllocationId": "eipalloc-1"}),
            "AllocationId is for a new network",
        ),
        (json!({"SecurityGroupIds": "sg-1"}), "SecurityGroupIds requires VpcId. Set VpcId to"),
        (json!({"CacheId": "shared"}), "CacheId requires Cache=existing. Set Cache=existing to"),
        (json!({"CacheId": "shared", "VpcId": vpc, "SubnetIds": subnets}), "CacheId requires Cache=existing."),
        (json!({"CacheUrl": "redis://cache:6379"}), "CacheUrl requires Cache=existing. Set Cache=existing to"),
        (json!({"CacheUrl": "redis://cache:6379", "Cache": "none"}), "CacheUrl requires Cache=existing."),
        (json!({"Cache": "existing", "CacheId": "shared"}), "Cache=existing requires VpcId and SubnetIds. Set them"),
        (
            json!({"Cache": "existing", "VpcId": vpc, "SubnetIds": subnets}),
            "Cache=existing requires CacheId or CacheUrl",
        ),
        (
            json!({
                "Cache": "existing", "CacheId": "shared", "CacheUrl": "redis://cache:6379",
                "VpcId": vpc, "SubnetIds": subnets,
            }),
            "CacheId and CacheUrl are both set. Leave one of them empty",
        ),
        (json!({"CacheIamUser": "bridge"}), "CacheIamUser requires Cache=existing and CacheId. Leave it empty"),
        (json!({"MonthlyBudget": 50}), "MonthlyBudget requires AlarmEmail. Set AlarmEmail to"),
        (json!({"DomainName": "members.example.org"}), "DomainName requires CertificateArn. Request a certificate"),
        (
            json!({"CertificateArn": "arn:aws:acm:us-east-1:123456789012:certificate/1"}),
            "CertificateArn requires DomainName. Set DomainName to",
        ),
    ])
}

#[test]
fn every_alarm_notifies_and_is_documented() -> Result<()> {
    let operations = std::fs::read_to_string(workspace().join("docs/operations.md"))?;
    let resources = default_resources()?;
    let alarms: Vec<&Value> = resources
        .values()
        .filter(|resource| resource["Type"] == "AWS::CloudWatch::Alarm")
        .map(|r| &r["Properties"])
        .collect();
    assert_eq!(alarms.len(), 22);
    for alarm in alarms {
        assert_eq!((&alarm["AlarmActions"], &alarm["OKActions"]), (&json!(["Alarms"]), &json!(["Alarms"])));
        let description = alarm["AlarmDescription"].as_str().unwrap_or_default();
        let (_, section) =
            description.rsplit_once("docs/operations.md#").with_context(|| format!("no section: {description}"))?;
        assert!(operations.contains(&format!("### {section}\n")), "docs/operations.md has no section on {section}");
        assert_eq!(alarm["AlarmName"], format!("bridge {section}"));
    }
    let dashboard = resources["Dashboard"]["Properties"]["DashboardBody"].as_str().unwrap_or_default();
    let dashboard: Value = serde_json::from_str(dashboard).context("the dashboard isn't valid JSON")?;
    let shown = list(&dashboard["widgets"][0]["properties"]["alarms"]).into_iter().collect::<BTreeSet<_>>();
    let all = resources.iter().filter(|(_, resource)| resource["Type"] == "AWS::CloudWatch::Alarm");
    assert_eq!(shown, all.map(|(name, _)| format!("{name}.Arn")).collect(), "the dashboard shows every alarm");
    Ok(())
}

#[test]
fn budget_is_of_the_whole_account_and_tells_the_alarm_address() -> Result<()> {
    for (choice, parameters, resources) in deployments()? {
        let Some(amount) = parameters.get("MonthlyBudget") else {
            assert!(!resources.contains_key("Budget"), "{choice}");
            continue;
        };
        let budget = &resources["Budget"]["Properties"];
        // Without a filter, which needs a tag that is activated by hand. Without a name, or it couldn't be replaced.
        let limit = json!({"Amount": amount, "Unit": "USD"});
        assert_eq!(budget["Budget"], json!({"BudgetType": "COST", "TimeUnit": "MONTHLY", "BudgetLimit": limit}));
        let notified = budget["NotificationsWithSubscribers"].as_array().context("it has notifications")?;
        let notified: Vec<Value> = notified
            .iter()
            .map(|notified| {
                let notification = &notified["Notification"];
                assert_eq!(notification["ThresholdType"], "PERCENTAGE");
                json!([
                    notification["NotificationType"],
                    notification["Threshold"],
                    notified["Subscribers"][0]["Address"]
                ])
            })
            .collect();
        assert_eq!(notified, [json!(["ACTUAL", 80, "a@example.org"]), json!(["FORECASTED", 100, "a@example.org"])]);
    }
    Ok(())
}

/// CloudWatch checks an expression only when the alarm is created.
#[test]
fn every_expression_of_an_alarm_uses_exactly_its_metrics() -> Result<()> {
    for (name, resource) in default_resources()? {
        let Some(metrics) = resource["Properties"]["Metrics"].as_array() else { continue };
        let (results, queries): (Vec<&Value>, Vec<&Value>) =
            metrics.iter().partition(|metric| metric["ReturnData"] == true);
        ensure!(results.len() == 1, "{name}: expected one result, got {}", results.len());
        let expression = results[0]["Expression"].as_str().unwrap_or_default();
        let is_id = |word: &&str| word.starts_with(|first: char| first.is_ascii_lowercase());
        let used: BTreeSet<&str> =
            expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(is_id).collect();
        let defined: BTreeSet<&str> = queries.iter().filter_map(|metric| metric["Id"].as_str()).collect();
        assert_eq!(used, defined, "{name}: {expression}");
        let periods: BTreeSet<String> =
            queries.iter().map(|metric| metric["MetricStat"]["Period"].to_string()).collect();
        assert_eq!(periods.len(), 1, "{name}: expected one period, got {periods:?}");
    }
    Ok(())
}

/// A share says nothing if only a few requests were made, or if anyone without a key can dilute it.
#[test]
fn shares_of_outcomes_need_requests_and_ignore_those_that_the_gate_refused() -> Result<()> {
    let resources = default_resources()?;
    for (name, metrics, minimum) in [
        ("UnavailableAlarm", &["NotMember", "Unavailable", "Verified"][..], ""),
        ("RateLimitedAlarm", &["NotMember", "RateLimited", "Unavailable", "Verified"], ">= 20"),
        ("NotMembersAlarm", &["NotMember", "Verified"], ">= 20"),
    ] {
        let alarm = &resources[name]["Properties"];
        let queries = alarm["Metrics"].as_array().context("it has several metrics")?;
        let mut queried: Vec<&str> =
            queries.iter().filter_map(|query| query["MetricStat"]["Metric"]["MetricName"].as_str()).collect();
        queried.sort_unstable();
        assert_eq!(queried, metrics, "{name}");
        let expression = queries[0]["Expression"].as_str().unwrap_or_default();
        assert!(expression.contains(minimum), "{name}: {expression}");
        // Every request emits all outcomes, so there is nothing to fill, even in an outage.
        assert!(!expression.contains("FILL"), "{name}: {expression}");
    }
    Ok(())
}

/// A list that is held goes off at once. What stays partial or withheld goes off after 24 hours, however often runs are.
#[test]
fn lists_that_wait_go_off_at_once_or_after_a_day() -> Result<()> {
    for seconds in [900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400] {
        let resources =
            resources_for_all(&[&json!({"MirrorPeriodSeconds": seconds})])?.pop().context("there is one template")?;
        let alarm = |name: &str| resources[name]["Properties"].clone();
        let held = alarm("MirrorHeldAlarm");
        assert_eq!((&held["MetricName"], &held["EvaluationPeriods"]), (&json!("ListsHeld"), &json!(1)));
        assert_eq!((&held["Statistic"], &held["Period"]), (&json!("Maximum"), &json!(seconds)));

        let partial = alarm("MirrorPartialAlarm");
        let metrics = partial["Metrics"].as_array().context("it has several metrics")?;
        let queried: Vec<&Value> =
            metrics.iter().map(|metric| &metric["MetricStat"]).filter(|stat| !stat.is_null()).collect();
        let names: Vec<&Value> = queried.iter().map(|stat| &stat["Metric"]["MetricName"]).collect();
        assert_eq!(names, ["ListsPartial", "Withheld"]);
        for stat in queried {
            // A run by hand that concerns only some lists must not end the alarm.
            assert_eq!((&stat["Stat"], &stat["Period"]), (&json!("Maximum"), &json!(seconds)));
        }
        assert_eq!(partial["EvaluationPeriods"].as_u64().map(|periods| periods * seconds), Some(86_400));
        assert_eq!(partial.get("DatapointsToAlarm"), None, "all of them");
    }
    Ok(())
}

/// A pass may take a day. A ledger that one run couldn't use needs no one.
#[test]
fn slow_passes_and_an_unavailable_ledger_go_off_for_each_period() -> Result<()> {
    for seconds in [900, 3_600, 86_400] {
        let resources =
            resources_for_all(&[&json!({"MirrorPeriodSeconds": seconds})])?.pop().context("there is one template")?;
        assert_eq!(resources["Mirror"]["Properties"]["Environment"]["Variables"]["MIRROR_PERIOD_SECONDS"], seconds);
        for (name, metric, threshold, periods, points) in [
            ("MirrorSlowAlarm", "PassSeconds", 86_400, 1, None),
            ("LedgerUnavailableAlarm", "LedgerUnavailable", 0, 3, Some(2)),
        ] {
            let alarm = &resources[name]["Properties"];
            assert_eq!((&alarm["MetricName"], &alarm["Threshold"]), (&json!(metric), &json!(threshold)), "{name}");
            assert_eq!((&alarm["Statistic"], &alarm["Period"]), (&json!("Maximum"), &json!(seconds)), "{name}");
            assert_eq!(alarm["EvaluationPeriods"], periods, "{name}");
            assert_eq!(alarm.get("DatapointsToAlarm").and_then(Value::as_u64), points, "{name}");
        }
    }
    Ok(())
}

/// The metrics that the alarms and the dashboard query are the ones that the functions emit.
#[test]
fn every_queried_metric_is_emitted() -> Result<()> {
    let resources = default_resources()?;
    let mut code = String::new();
    let mut paths =
        ["functions/verify/src", "functions/mirror/src", "shared/src"].map(|path| workspace().join(path)).to_vec();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            for entry in path.read_dir()? {
                paths.push(entry?.path());
            }
        } else {
            code += &std::fs::read_to_string(path)?;
        }
    }
    let dashboard = resources["Dashboard"]["Properties"]["DashboardBody"].as_str().unwrap_or_default();
    let mut queried: BTreeSet<String> = BTreeSet::new();
    for resource in resources.values() {
        let text = resource["Properties"].to_string();
        queried.extend(
            text.split(r#""MetricName":""#).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned),
        );
    }
    let ours = ["Verified", "NotMember", "RateLimited", "Unavailable", "Refused", "Latency", "NoviLatency", "CacheHit"];
    let more = [
        "CacheMiss",
        "CacheStale",
        "CacheDown",
        "NoviCalls",
        "NoviRateLimited",
        "NoviMismatch",
        "ListsOk",
        "ListsPartial",
        "ListsUnfinished",
        "ListsBlocked",
        "ListsFailed",
        "ListsHeld",
        "Withheld",
        "BudgetExhausted",
        "StrangersLimited",
        "BreakerOpen",
        "NoviCallsToday",
        "LedgerPeople",
        "LedgerUnavailable",
        "OldestRecordSeconds",
        "PassSeconds",
    ];
    for name in ours.iter().chain(&more) {
        assert!(dashboard.contains(&format!("\"{name}\"")), "the dashboard doesn't show {name}");
        queried.insert((*name).to_owned());
    }
    // Metrics of Lambda, API Gateway and SQS themselves.
    for own in ["Errors", "Throttles", "Invocations", "Count", "4xx", "5xx", "ApproximateNumberOfMessagesVisible"] {
        assert!(queried.remove(own), "{own}");
    }
    for name in queried {
        assert!(code.contains(&format!("\"{name}\"")), "no function emits {name}");
    }
    Ok(())
}

/// The cache user has the permissions that the functions need on their keys, and no others.
#[tokio::test(flavor = "multi_thread")]
async fn cache_user_has_the_permissions_that_the_functions_need() -> Result<()> {
    use fastrand::Rng;
    use tests::directory::Directory;
    use tests::harness::{Mirror, Verification};

    let resources = default_resources()?;
    let access = resources["CacheUser"]["Properties"]["AccessString"].as_str().unwrap_or_default().to_owned();
    // A serverless cache is a cluster.
    let redis = Redis::start(Kind::Cluster)?;
    let password = "password-of-the-cache-user";
    let rules: Vec<&str> = access.split_whitespace().collect();
    let login = format!(">{password}");
    redis.command_on_all(&[&["ACL", "SETUSER", "bridge", &login], &rules[..]].concat())?;
    let url = format!("redis://bridge@127.0.0.1:{}", redis.port());
    let variables = [("CACHE_URL", url.as_str()), ("CACHE_CLUSTER", "true")];

    let env = Verification::start_with(&variables, |config| config["cache_password"] = json!(password)).await?;
    for expected in ["miss", "hit"] {
        let response = env.verify(env.member).await?;
        assert_eq!(response.header("x-cache"), expected, "{}", redis.command(&["ACL", "LOG"])?);
    }
    let health = env.send(&tests::api::Request::get("/health")).await?;
    assert_eq!(health.json()["checks"]["cache"], "ok", "{}", health.body);
    env.novi.state().fail("/", 1, tests::novi::NoviFault::RateLimited(Some("1".to_owned())));
    let unknown = uuid::Uuid::from_u128(fastrand::u128(..));
    assert_eq!(env.verify(unknown).await?.status, 429);
    assert_eq!(env.verify(unknown).await?.status, 429, "the cooldown is active");

    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 3);
    let mappings = json!([{"group_guid": group, "list_id": "members.lists.example.org"}]);
    let mut env = Mirror::start(directory, mappings, &variables).await?;
    env.config["cache_password"] = json!(password);
    env.function.set_config(&env.config)?;
    env.mailman.create_list("members").await?;
    assert_eq!(env.run(json!({})).await?["status"], "ok");
    let log = env.function.log();
    assert!(log.contains("cache prewarmed") && !log.contains("lock unavailable"), "{log}");

    // Redis denied nothing, so the functions use no keys other than their own.
    let denied = redis.command(&["ACL", "LOG"])?;
    assert!(denied.is_empty(), "{denied}");
    Ok(())
}
