//! Addresses and names as people paste them into Novi and into `keep`, compared with what Mailman has.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};
use tests::harness::list;
use tests::lists::{Lists, people};
use tests::novi::NoviFault;

/// Fields in which a person's address is clear. `@` stands for the address.
const CLEAR: [&str; 16] = [
    "\u{200b}@",
    "@\u{200b}",
    "\u{feff}@\u{a0}",
    "\u{ad}@\u{2060}",
    "@\r\n",
    "@\u{0}",
    "\t@\u{7}",
    "<@>",
    "mailto:@",
    "<MAILTO:@>",
    "Ann Lee <@>",
    "\"Lee, Ann\" <@>",
    "\"@\"",
    "@.",
    "<@.>",
    "@ (work)",
];

/// Fields in which it isn't.
const UNCLEAR: [&str; 17] = [
    "@; other@mail.example.org",
    "other@mail.example.org, @",
    "@\nother@mail.example.org",
    "@ / other@mail.example.org",
    "@ or other@mail.example.org",
    "work: other@mail.example.org home: @",
    "<@> <other@mail.example.org>",
    "Ann <@>, Bob <other@mail.example.org>",
    "@@mail.example.org",
    "@ other@mail.example.org",
    "other@mail.example.org @",
    "mailto:@,mailto:other@mail.example.org",
    // What comes before or after it may be part of it.
    "ann,@",
    "ann;@",
    "(ann)@",
    "@ Dr. Lee",
    "@ www.example.org",
];

/// Replaces the `@` that stands for the address.
fn field(pattern: &str, address: &str) -> String {
    let is_part = |before: Option<char>, after: Option<char>| {
        before.is_some_and(char::is_alphanumeric) && after.is_some_and(char::is_alphanumeric)
    };
    let characters: Vec<char> = pattern.chars().collect();
    let at = (0..characters.len()).find(|at| {
        let before = at.checked_sub(1).and_then(|before| characters.get(before)).copied();
        characters[*at] == '@' && !is_part(before, characters.get(at + 1).copied())
    });
    let (before, after) = characters.split_at(at.unwrap_or_default());
    before.iter().collect::<String>() + address + &after[1..].iter().collect::<String>()
}

#[tokio::test(flavor = "multi_thread")]
async fn pasted_address_removes_no_member_and_adds_no_other() -> Result<()> {
    let mut lists = Lists::default();
    let clear = lists.add(people(CLEAR.len() + 2, 0, 0), json!({}));
    let unclear = lists.add(people(UNCLEAR.len() + 20, 0, 0), json!({}));
    let joining = lists.add(people(CLEAR.len(), 0, CLEAR.len()), json!({}));
    let not_joining = lists.add(people(UNCLEAR.len(), 0, UNCLEAR.len()), json!({}));
    let several = lists.add(people(2, 0, 1), json!({}));
    let (env, lists) = lists.start(&[]).await?;
    let of = |number: usize| &lists[number];
    let wanted: Vec<BTreeSet<String>> = lists.iter().map(|list| list.wanted(&env)).collect();
    let (first, second) = {
        let mut state = env.novi.state();
        let directory = &mut state.directory;
        for (patterns, ids) in [
            (&CLEAR[..], &of(clear).stay),
            (&UNCLEAR, &of(unclear).stay),
            (&CLEAR, &of(joining).join),
            (&UNCLEAR, &of(not_joining).join),
        ] {
            for (pattern, id) in patterns.iter().zip(ids) {
                directory.person(*id)["Email"] = json!(field(pattern, &directory.address(*id)));
            }
        }
        // A space next to the @ is not a lost plus.
        let [spaced, before] = [0, 1].map(|n| of(clear).stay[CLEAR.len() + n]);
        directory.person(spaced)["Email"] = json!(directory.address(spaced).replace('@', "@ "));
        directory.person(before)["Email"] = json!(directory.address(before).replace('@', " \u{a0}@"));
        // Both addresses of this person are on the roster.
        let (one, two) = (directory.address(of(several).stay[0]), directory.address(of(several).stay[1]));
        directory.person(of(several).stay[0])["Email"] = json!(format!("{one}; {two}"));
        directory.person(of(several).stay[1])["Active"] = json!(false);
        (one, two)
    };
    for word in ["other@mail.example.org", &first, &second] {
        env.private.add(word);
    }
    let mut memberships = Vec::new();
    for list in &lists {
        memberships.push(env.mailman.memberships(&list.id).await?);
    }
    let report = env.run(json!({})).await?;
    for ((test, memberships), what) in
        lists.iter().zip(memberships).zip(["clear", "unclear", "joining", "not joining", "several"])
    {
        let after = env.mailman.memberships(&test.id).await?;
        let entry = list(&report, &test.id);
        assert!(memberships.iter().all(|(id, address)| after.get(id) == Some(address)), "{what}: {entry}");
        assert_eq!((&entry["unsubscribed"], &entry["withheld"]), (&json!(0), &json!(0)), "{what}: {entry}");
    }
    for (number, what) in [(clear, "clear"), (joining, "joining")] {
        let entry = list(&report, &of(number).id);
        assert_eq!((&entry["status"], &entry["reason"]), (&json!("ok"), &Value::Null), "{what}: {entry}");
        assert_eq!(entry["wanted"], wanted[number].len(), "{what}: {entry}");
        of(number).expect(&env, &wanted[number], what).await?;
    }
    for (number, count, what) in
        [(unclear, UNCLEAR.len(), "unclear"), (not_joining, UNCLEAR.len(), "not joining"), (several, 1, "several")]
    {
        let entry = list(&report, &of(number).id);
        assert_eq!(
            (&entry["status"], &entry["skipped"]["invalid_email"]),
            (&json!("partial"), &json!(count)),
            "{what}: {entry}"
        );
        assert!(entry["reason"].is_string(), "{what}: {entry}");
        let joined = if number == several { 1 } else { 0 };
        assert_eq!(entry["subscribed"], joined, "{what}: {entry}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn domain_is_compared_by_its_a_label_and_only_ascii_is_lowered() -> Result<()> {
    let mut lists = Lists::default();
    let a_labels = lists.add(people(0, 5, 3), json!({}));
    let refused = lists.add(people(10, 0, 9), json!({}));
    let keep = json!([
        " Owner.One@B\u{fc}cher.example ",
        "mailto:owner.two@mail.example.org",
        "<Owner.Three@Mail.Example.Org.>",
        "\u{200b}owner.four@mail.example.org",
        "owner.five@ mail.example.org",
        "owner.six@mail.example.org",
    ]);
    let kept = lists.add(people(10, 1, 0), json!({ "keep": keep }));
    let (env, lists) = lists.start(&[]).await?;
    let of = |number: usize| &lists[number];
    for word in ["kate@mail.example.org", "eve", "adam", "zoe"] {
        env.private.add(word);
    }

    // Members with these domains are on the roster.
    let domains = ["eve@B\u{fc}cher.example", "adam@bu\u{308}cher.EXAMPLE", "zoe@stra\u{df}e.example."];
    let labels = ["eve@xn--bcher-kva.example", "adam@xn--bcher-kva.example", "zoe@xn--strae-oqa.example"];
    let owners = [
        "owner.one@xn--bcher-kva.example",
        "owner.two@mail.example.org",
        "owner.three@mail.example.org",
        "owner.four@mail.example.org",
        "owner.five@mail.example.org",
    ];
    env.mailman.insert_members(&of(a_labels).id, labels.iter().take(2).map(|label| (*label).to_owned()))?;
    env.mailman.insert_members(&of(kept).id, owners.map(str::to_owned))?;
    let not_addresses = [
        // A Kelvin sign is no k: the address of someone else would be subscribed.
        "\u{212a}ate@mail.example.org".to_owned(),
        "\u{fc}n\u{ef}code@mail.example.org".to_owned(),
        "case1-request@lists.example.org".to_owned(),
        "Case1-Owner@lists.example.org".to_owned(),
        "case1-bounces+x@lists.example.org".to_owned(),
        "case1-confirm+token@lists.example.org".to_owned(),
        "case1@lists.example.org".to_owned(),
        "case0@lists.example.org".to_owned(),
        "case2-join@lists.example.org".to_owned(),
    ];
    {
        let mut state = env.novi.state();
        for (id, email) in of(a_labels).join.iter().zip(domains) {
            state.directory.person(*id)["Email"] = json!(email);
        }
        for (id, email) in of(refused).join.iter().zip(&not_addresses) {
            state.directory.person(*id)["Email"] = json!(email);
        }
    }
    let report = env.run(json!({"lists": [of(a_labels).id], "force": {&of(a_labels).id: {"leaves": 5}}})).await?;
    let entry = list(&report, &of(a_labels).id);
    assert_eq!(
        (&entry["status"], &entry["subscribed"], &entry["unsubscribed"], &entry["wanted"]),
        (&json!("ok"), &json!(1), &json!(5), &json!(3)),
        "{entry}"
    );
    of(a_labels).expect(&env, &labels.map(str::to_owned).into(), "A-labels").await?;

    let report = env.run(json!({})).await?;
    let entry = list(&report, &of(refused).id);
    assert_eq!((&entry["subscribed"], &entry["wanted"]), (&json!(0), &json!(10)), "{entry}");
    assert_eq!(entry["skipped"]["invalid_email"], not_addresses.len(), "{entry}");
    of(refused).expect(&env, &of(refused).roster, "not addresses").await?;

    let entry = list(&report, &of(kept).id);
    assert_eq!(
        (&entry["status"], &entry["kept"], &entry["unsubscribed"], &entry["subscribed"]),
        (&json!("ok"), &json!(owners.len()), &json!(1), &json!(0)),
        "{entry}"
    );
    let expected = of(kept).wanted(&env).into_iter().chain(owners.map(str::to_owned)).collect();
    of(kept).expect(&env, &expected, "keep subscribes no one").await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_lose_control_characters_and_groups_may_list_a_member_twice() -> Result<()> {
    let mut lists = Lists::default();
    let named = lists.add(people(0, 0, 5), json!({}));
    let twice = lists.add(people(18, 2, 0), json!({}));
    let too_high = lists.add(people(18, 2, 0), json!({}));
    let (env, lists) = lists.start(&[]).await?;
    let of = |number: usize| &lists[number];
    let names = [
        ("Ann\r\nBcc: all", "Lee", "AnnBcc: all L."),
        ("A\u{0}nn\u{7f}", "Lee", "Ann L."),
        ("\u{202e}Ann\u{2066}", "\u{202b}Lee", "Ann L."),
        // Joiners are part of some scripts.
        (
            "\u{646}\u{627}\u{645}\u{647}\u{200c}\u{627}\u{6cc}",
            "Lee",
            "\u{646}\u{627}\u{645}\u{647}\u{200c}\u{627}\u{6cc} L.",
        ),
        ("\u{915}\u{94d}\u{200d}\u{937}", "Lee", "\u{915}\u{94d}\u{200d}\u{937} L."),
    ];
    {
        let mut state = env.novi.state();
        for (id, (first, last, _)) in of(named).join.iter().zip(names) {
            let record = state.directory.person(*id);
            (record["FirstName"], record["LastName"]) = (json!(first), json!(last));
        }
        let first = of(twice).stay[0];
        state.directory.groups.entry(of(twice).group).and_modify(|members| members.push(first));
        let rows: Vec<Value> = of(too_high).stay.iter().map(|id| json!({ "UniqueID": id })).collect();
        let page = json!({"TotalCount": rows.len() + 1, "Results": rows}).to_string();
        let path = format!("/groups/{}", of(too_high).group.hyphenated());
        state.fail(&path, usize::MAX, NoviFault::Respond(200, "application/json", page));
    }
    let report = env.run(json!({})).await?;
    let roster = env.mailman.roster(&of(named).id, "member").await?;
    for (id, (first, _, expected)) in of(named).join.iter().zip(names) {
        assert_eq!(roster[&of(named).address(&env, *id)], expected, "{first:?}");
    }
    of(twice).expect_synced(&env, &report, "a member is listed twice").await?;
    // The member whose row is missing may be one of the two.
    let entry = list(&report, &of(too_high).id);
    assert_eq!((&entry["status"], &entry["withheld"]), (&json!("partial"), &json!(2)), "{entry}");
    of(too_high).expect(&env, &of(too_high).roster, "fewer rows than TotalCount").await
}
