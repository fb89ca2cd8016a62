//! Asks Mailman, and describes its lists.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use crate::mailman::{ListSettings, Mailman, MailmanError, Version};
use crate::mapping::{ListId, Mappings};
use crate::probe::report::Transport;

/// Mailman's REST API has two workers by default.
const CONCURRENCY: usize = 2;

/// What the probe found out about one list.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ListFacts {
    pub(crate) list_id: String,
    /// The number of its members, or `null` if the list could not be read.
    pub(crate) members: Option<u64>,
    #[serde(flatten)]
    pub(crate) settings: ListSettings,
    /// The number of pending subscription requests. `null` if this Mailman can't count them.
    pub(crate) pending_requests: Option<u64>,
    #[serde(skip)]
    pub(crate) error: Option<MailmanError>,
}

/// What the probe found out about Mailman.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct MailmanFacts {
    pub(crate) transport: Option<Transport>,
    #[serde(serialize_with = "as_text")]
    pub(crate) version: Option<Version>,
    pub(crate) lists: Vec<ListFacts>,
    /// The reason why Mailman could not be asked.
    #[serde(skip)]
    pub(crate) error: Option<MailmanError>,
}

#[expect(clippy::ref_option, reason = "serde passes references")]
fn as_text<S: serde::Serializer>(version: &Option<Version>, serializer: S) -> Result<S::Ok, S::Error> {
    version.map(|Version(major, minor, patch)| format!("{major}.{minor}.{patch}")).serialize(serializer)
}

/// Asks for everything, within the client's time. Writes nothing.
pub(crate) async fn ask(mailman: &Mailman<'_>, mappings: &Mappings) -> MailmanFacts {
    let mut facts = MailmanFacts { transport: Some(Transport::of(&mailman.base())), ..MailmanFacts::default() };
    match mailman.version().await {
        Ok(version) => facts.version = version,
        // Each list would fail in the same way, and might take as long.
        Err(error) => {
            facts.error = Some(error);
            return facts;
        }
    }
    let named = mappings.targets.iter().map(|target| &target.list);
    let lists: BTreeSet<&ListId> = named.chain(mappings.invalid.iter().filter_map(|it| it.list.as_ref())).collect();
    facts.lists = stream::iter(lists).map(|list| ask_list(mailman, list)).buffered(CONCURRENCY).collect().await;
    facts
}

async fn ask_list(mailman: &Mailman<'_>, list: &ListId) -> ListFacts {
    let mut facts = ListFacts {
        list_id: list.to_string(),
        members: None,
        settings: ListSettings::default(),
        pending_requests: None,
        error: None,
    };
    let read = async {
        facts.members = Some(mailman.member_count(list).await?);
        facts.settings = mailman.list_settings(list).await?;
        facts.pending_requests = mailman.pending_requests(list).await?;
        Ok(())
    };
    facts.error = read.await.err();
    facts
}
