//! The mirror behind a real nginx with an organization's rules: rate limits, limits of request bodies, error pages and
//! maintenance. And the mirror with the oldest Mailman that it supports.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use fastrand::Rng;
use futures_util::future::try_join_all;
use http::Method;
use serde_json::{Value, json};
use tests::directory::Directory;
use tests::harness::{Mirror, list};
use tests::mailman::Mailman;
use tests::nginx::{Nginx, PATH_PREFIX, Rule};
use uuid::Uuid;

const LIST: &str = "members.lists.example.org";

/// A mirror of one list, with nginx between the mirror and Mailman.
struct Proxied {
    env: Mirror,
    nginx: Nginx,
    group: Uuid,
}

impl Proxied {
    /// Starts a mirror of a list that is mapped to a group of this number of ordinary members. No one is on the list.
    async fn start(members: usize, rules: &[Rule]) -> Result<Self> {
        let mut directory = Directory::default();
        let group = directory.add_plain_group(&mut Rng::new(), members);
        let env = Mirror::start(directory, json!([mapping(group)]), &[]).await?;
        Self::insert(env, group, rules).await
    }

    /// Creates the list, and inserts nginx between the mirror and Mailman.
    async fn insert(env: Mirror, group: Uuid, rules: &[Rule]) -> Result<Self> {
        env.mailman.create_list("members").await?;
        let nginx = Nginx::start(&env.mailman.base_url(), rules).await?;
        let mut proxied = Self { env, nginx, group };
        let url = proxied.nginx.base_url();
        proxied.use_url(&url)?;
        Ok(proxied)
    }

    /// Sets the URL that the mirror knows Mailman by.
    fn use_url(&mut self, url: &str) -> Result<()> {
        self.env.config["mailman_base_url"] = json!(url);
        self.env.function.set_config(&self.env.config)
    }

    /// Returns the addresses of the group.
    fn addresses(&self) -> BTreeSet<String> {
        let state = self.env.novi.state();
        state.directory.groups[&self.group].iter().map(|id| state.directory.address(*id)).collect()
    }

    /// Returns the addresses on the list.
    async fn roster(&self) -> Result<BTreeSet<String>> {
        Ok(self.env.mailman.roster(LIST, "member").await?.into_keys().collect())
    }

    /// Checks that the list has each address of the group once, and no others.
    async fn assert_synced(&self, what: &str) -> Result<()> {
        let memberships = self.env.mailman.memberships(LIST).await?;
        let members: BTreeSet<String> = memberships.values().cloned().collect();
        assert_eq!(memberships.len(), members.len(), "{what}: an address is subscribed twice");
        assert_eq!(members, self.addresses(), "{what}");
        Ok(())
    }

    /// Puts the group on the list, and this number of others. Returns all of them.
    fn fill_with_leavers(&self, leavers: usize) -> Result<BTreeSet<String>> {
        let leavers = (0..leavers).map(|n| format!("leaver{n:03}@mail.example.org"));
        let roster: BTreeSet<String> = self.addresses().into_iter().chain(leavers).collect();
        roster.iter().for_each(|address| self.env.private.add(address));
        self.env.mailman.insert_members(LIST, roster.iter().cloned())?;
        Ok(roster)
    }

    /// Returns the statuses of the requests with this method and path.
    fn statuses(&self, request: &str) -> Result<Vec<String>> {
        let log = self.nginx.access_log()?;
        let statuses = log.lines().filter_map(|line| line.strip_prefix(request)?.strip_prefix(' '));
        Ok(statuses.filter_map(|rest| rest.split(' ').next()).map(str::to_owned).collect())
    }
}

/// Returns a mapping of the list without limits.
fn mapping(group: Uuid) -> Value {
    json!({"group_guid": group, "list_id": LIST, "max_removal_percent": 100, "max_growth_percent": 1_000})
}

/// Returns the reason of a list, or an empty text.
fn reason(entry: &Value) -> &str {
    entry["reason"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limit_is_waited_out() -> Result<()> {
    const MEMBERS: usize = 60;
    try_join_all([(429, None), (503, None), (429, Some(1))].map(async |(status, retry_after)| {
        let what = format!("{status}, Retry-After {retry_after:?}");
        let proxied = Proxied::start(MEMBERS, &[Rule::RateLimit { per_second: 10, status, retry_after }]).await?;
        let report = proxied.env.run(json!({})).await?;
        let entry = list(&report, LIST);
        assert_eq!(
            (&report["status"], &entry["status"], &entry["subscribed"], &entry["rejected"]["other"]),
            (&json!("ok"), &json!("ok"), &json!(MEMBERS), &json!(0)),
            "{what}: {report}"
        );
        proxied.assert_synced(&what).await?;
        let statuses = proxied.statuses("POST /3.1/members")?;
        assert!(statuses.contains(&status.to_string()), "{what}: the limit was never reached: {statuses:?}");
        Ok(())
    }))
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: a thousand requests at ten a second"]
async fn first_fill_of_a_thousand_behind_a_rate_limit() -> Result<()> {
    const MEMBERS: usize = 1_000;
    let rule = Rule::RateLimit { per_second: 10, status: 429, retry_after: None };
    let proxied = Proxied::start(MEMBERS, &[rule]).await?;
    proxied.env.novi.state().bulk_hidden_fields = Some(Vec::new());
    let report = proxied.env.run(json!({})).await?;
    assert_eq!((&report["status"], &list(&report, LIST)["subscribed"]), (&json!("ok"), &json!(MEMBERS)), "{report}");
    assert!(report["seconds"].as_f64().is_some_and(|seconds| seconds < 130.0), "{report}");
    proxied.assert_synced("first fill").await
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_that_are_too_large_are_halved() -> Result<()> {
    const LEAVERS: usize = 90;
    let rules = [(Rule::MaxBody(1_500), "413"), (Rule::Firewall(1_000), "403"), (Rule::LargeBodiesFail(1_000), "500")];
    try_join_all(rules.map(async |(rule, status)| {
        let what = format!("{rule:?}");
        let proxied = Proxied::start(10, &[rule]).await?;
        proxied.fill_with_leavers(LEAVERS)?;
        let report = proxied.env.run(json!({})).await?;
        let entry = list(&report, LIST);
        assert_eq!(
            (&entry["status"], &entry["subscribed"], &entry["unsubscribed"]),
            (&json!("ok"), &json!(0), &json!(LEAVERS)),
            "{what}: {report}"
        );
        proxied.assert_synced(&what).await?;
        let statuses = proxied.statuses(&format!("DELETE /3.1/lists/{LIST}/roster/member"))?;
        assert!(statuses.iter().any(|other| other == status), "{what}: no request was too large: {statuses:?}");
        assert!(statuses.iter().any(|other| other == "200"), "{what}: nothing was removed in bulk: {statuses:?}");
        Ok(())
    }))
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_fall_back_to_one_by_one_and_name_the_missing_rule() -> Result<()> {
    const LEAVERS: usize = 5;
    let one_by_one = [(Rule::DropDeleteBody, true), (Rule::ForbidDeleteWithBody(405), true)];
    let never = [(Rule::ForbidDelete(403), false), (Rule::ForbidDelete(405), false)];
    try_join_all(one_by_one.into_iter().chain(never).map(async |(rule, can_remove)| {
        let what = format!("{rule:?}");
        let proxied = Proxied::start(3, &[rule]).await?;
        let roster = proxied.fill_with_leavers(LEAVERS)?;
        // With this policy, a removal waits for a moderator, unless the request says that it is approved.
        let policy = json!({"unsubscription_policy": "moderate"});
        let path = format!("lists/{LIST}/config");
        let (status, _) = proxied.env.mailman.request(Method::PATCH, &path, Some(policy)).await?;
        assert_eq!(status, 204);
        let emails = proxied.env.mailman.outgoing_emails()?;
        let report = proxied.env.run(json!({})).await?;
        assert_eq!(proxied.env.mailman.outgoing_emails()?, emails, "{what}: no one gets a goodbye message");
        let (_, config) = proxied.env.mailman.request(Method::GET, &path, None).await?;
        assert_eq!(config["send_goodbye_message"], true, "{what}: the list's setting stays");
        let entry = list(&report, LIST);
        let status = entry["status"].as_str().unwrap_or_default();
        assert!(reason(entry).contains("DELETE"), "{what}: {report}");
        if can_remove {
            assert!(matches!(status, "ok" | "partial"), "{what}: {report}");
            assert_eq!(entry["unsubscribed"], LEAVERS, "{what}: {report}");
            proxied.assert_synced(&what).await?;
        } else {
            assert!(matches!(status, "failed" | "partial"), "{what}: {report}");
            assert_eq!(entry["unsubscribed"], 0, "{what}: {report}");
            assert!(reason(entry).contains("proxy"), "{what}: {report}");
            assert_eq!(proxied.roster().await?, roster, "{what}");
        }
        Ok(())
    }))
    .await
    .map(drop)
}

/// Their status is Mailman's, but they aren't in its words.
#[tokio::test(flavor = "multi_thread")]
async fn error_pages_of_a_proxy_are_not_mailmans() -> Result<()> {
    const MISSING: &str = "missing.lists.example.org";
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 2);
    let mappings = json!([mapping(group), {"group_guid": group, "list_id": MISSING}]);
    let env = Mirror::start(directory, mappings, &[("MAILMAN_RETRY_SECONDS", "5")]).await?;
    let proxied = Proxied::insert(env, group, &[Rule::ErrorPages]).await?;
    let pending = proxied.addresses().into_iter().next().unwrap_or_default();
    let request = json!({"list_id": LIST, "subscriber": pending});
    let (status, _) = proxied.env.mailman.request(Method::POST, "members", Some(request)).await?;
    assert_eq!(status, 202, "the request waits for a confirmation");

    let report = proxied.env.run(json!({})).await?;
    let missing = reason(list(&report, MISSING));
    assert!(!missing.contains("no list with this id") && missing.contains("Another server"), "{report}");
    let entry = list(&report, LIST);
    // It may be missing nevertheless, and its mapping may be meant for this list.
    assert!(reason(entry).contains(&format!("names the list {MISSING}")), "{report}");
    let roster = proxied.roster().await?;
    assert!(!roster.contains(&pending), "the request is still pending");
    assert_eq!(entry["subscribed"], roster.len(), "{report}");
    assert_ne!(entry["status"], "ok", "{report}");
    let statuses = proxied.statuses("POST /3.1/members")?;
    assert!(statuses.contains(&"409".to_owned()), "the proxy replaced no 409: {statuses:?}");

    // In Mailman's own words, both are understood.
    proxied.nginx.set(&[]).await?;
    let report = proxied.env.run(json!({})).await?;
    assert!(reason(list(&report, MISSING)).contains("no list with this id"), "{report}");
    proxied.assert_synced("without error pages").await
}

#[tokio::test(flavor = "multi_thread")]
async fn welcome_page_is_not_mailman() -> Result<()> {
    let proxied = Proxied::start(3, &[Rule::WelcomePage]).await?;
    let roster = proxied.fill_with_leavers(2)?;
    let report = proxied.env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!(
        (&entry["status"], &entry["subscribed"], &entry["unsubscribed"]),
        (&json!("failed"), &json!(0), &json!(0)),
        "{report}"
    );
    assert!(reason(entry).contains("Another server than Mailman"), "{report}");
    assert_eq!(proxied.roster().await?, roster);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_with_retry_after_is_waited_out() -> Result<()> {
    let proxied = Proxied::start(5, &[Rule::Maintenance { retry_after: Some(1) }]).await?;
    proxied.env.mailman.subscribe(LIST, "gone@example.org", "member").await?;
    let end_maintenance = async {
        proxied.nginx.wait_for_status(503).await?;
        proxied.nginx.set(&[]).await
    };
    let (report, ended) = tokio::join!(proxied.env.run(json!({})), end_maintenance);
    ended?;
    let report = report?;
    let entry = list(&report, LIST);
    assert_eq!(
        (&report["status"], &entry["subscribed"], &entry["unsubscribed"]),
        (&json!("ok"), &json!(5), &json!(1)),
        "{report}"
    );
    proxied.assert_synced("after maintenance").await
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_for_an_hour_is_not_waited_for() -> Result<()> {
    let proxied = Proxied::start(5, &[Rule::Maintenance { retry_after: Some(3_600) }]).await?;
    let report = proxied.env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!((&entry["status"], &entry["subscribed"]), (&json!("failed"), &json!(0)), "{report}");
    assert!(reason(entry).contains("3600"), "{report}");
    // Other failures are retried for a minute.
    assert!(report["seconds"].as_f64().is_some_and(|seconds| seconds < 30.0), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mailman_under_a_path_is_mirrored() -> Result<()> {
    let mut proxied = Proxied::start(3, &[Rule::PathPrefix]).await?;
    proxied.env.mailman.subscribe(LIST, "gone@example.org", "member").await?;
    let url = format!("{}{PATH_PREFIX}", proxied.nginx.base_url());
    proxied.use_url(&url)?;
    let report = proxied.env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!(
        (&report["status"], &entry["subscribed"], &entry["unsubscribed"]),
        (&json!("ok"), &json!(3), &json!(1)),
        "{report}"
    );
    proxied.assert_synced("under a path").await
}

/// Mailman 3.3.5 fails on JSON booleans.
#[tokio::test(flavor = "multi_thread")]
async fn old_mailman_is_mirrored() -> Result<()> {
    let mut directory = Directory::default();
    let group = directory.add_plain_group(&mut Rng::new(), 6);
    let env = Mirror::start_on(Mailman::start_old().await?, directory, json!([mapping(group)]), &[]).await?;
    let (_, versions) = env.mailman.request(Method::GET, "system/versions", None).await?;
    ensure!(versions["mailman_version"].as_str().is_some_and(|version| version.contains(" 3.3.5 ")), "{versions}");
    let proxied = Proxied::insert(env, group, &[]).await?;
    let mailman = &proxied.env.mailman;
    for leaver in ["one@example.org", "two@example.org"] {
        let request = json!({
            "list_id": LIST, "subscriber": leaver, "send_welcome_message": "false",
            "pre_verified": "true", "pre_confirmed": "true", "pre_approved": "true",
        });
        assert_eq!(mailman.request(Method::POST, "members", Some(request)).await?.0, 201);
    }
    let pending = proxied.addresses().into_iter().next().unwrap_or_default();
    let request = json!({"list_id": LIST, "subscriber": pending});
    assert_eq!(mailman.request(Method::POST, "members", Some(request)).await?.0, 202);
    let emails = mailman.outgoing_emails()?;

    let report = proxied.env.run(json!({})).await?;
    let entry = list(&report, LIST);
    assert_eq!(
        (&report["status"], &entry["subscribed"], &entry["unsubscribed"]),
        (&json!("ok"), &json!(6), &json!(2)),
        "{report}"
    );
    proxied.assert_synced("first run").await?;
    let (_, requests) = mailman.request(Method::GET, &format!("lists/{LIST}/requests/count"), None).await?;
    assert_eq!(requests["count"], 0, "the pending request was discarded: {requests}");
    assert_eq!(mailman.outgoing_emails()?, emails, "the mirror is silent");

    let before = proxied.nginx.access_log()?.lines().count();
    let report = proxied.env.run(json!({})).await?;
    assert_eq!(report["status"], "ok", "{report}");
    let log = proxied.nginx.access_log()?;
    let second: Vec<&str> = log.lines().skip(before).collect();
    assert!(!second.is_empty() && second.iter().all(|line| line.starts_with("GET ")), "{second:?}");
    proxied.assert_synced("second run").await
}
