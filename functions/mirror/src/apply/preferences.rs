//! What people had chosen for a membership that is removed, and comes back.

use std::collections::BTreeMap;

use crate::address::Address;
use crate::mailman::{Mailman, MailmanError, Preferences};
use crate::mapping::ListId;

/// Returns what the people with these addresses have chosen, without those who have chosen nothing. A failure doesn't
/// prevent the removal.
pub(crate) async fn chosen(
    mailman: &Mailman<'_>,
    list: &ListId,
    addresses: Vec<&Address>,
) -> BTreeMap<Address, Preferences> {
    let mut chosen = BTreeMap::new();
    let mut failures = 0_usize;
    for address in addresses {
        match mailman.retry_read(async || read(mailman, list, address).await).await {
            Ok(preferences) if preferences.is_empty() => {}
            Ok(preferences) => drop(chosen.insert(address.clone(), preferences)),
            Err(error) => {
                failures += 1;
                tracing::warn!(%list, %error, "reading preferences failed");
                if failures > 2 {
                    break;
                }
            }
        }
    }
    chosen
}

async fn read(mailman: &Mailman<'_>, list: &ListId, address: &Address) -> Result<Preferences, MailmanError> {
    match mailman.membership(list, address).await? {
        Some(membership) => mailman.preferences(&membership).await,
        None => Ok(Preferences::new()),
    }
}

/// Restores what a person had chosen before the mirror removed the membership. Returns false if the next run has to
/// retry.
pub(crate) async fn restore(
    mailman: &Mailman<'_>,
    list: &ListId,
    address: &Address,
    preferences: &Preferences,
) -> bool {
    let restored = mailman.retry_membership(async || {
        let Some(membership) = mailman.membership(list, address).await? else { return Ok(false) };
        mailman.set_preferences(&membership.id, preferences).await?;
        Ok(true)
    });
    restored.await.unwrap_or_else(|error| {
        tracing::warn!(%list, %error, "restoring preferences failed");
        false
    })
}
