//! One membership of a list: how it moves to another address, and its preferences.
//!
//! Measured with core 3.3.3 to 3.3.10: a membership that moves keeps its id, preferences and moderation, and no one gets
//! a mail.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::address::Address;
use crate::mailman::client::Mailman;
use crate::mailman::error::{MailmanError, WriteOutcome};
use crate::mailman::response::{Response, error_from};
use crate::mapping::ListId;

/// The preferences of a membership that a person may have chosen, with their values as Mailman writes them.
pub(crate) type Preferences = BTreeMap<String, Value>;

/// The names of these preferences.
const PREFERENCES: [&str; 7] = [
    "acknowledge_posts",
    "delivery_mode",
    "delivery_status",
    "hide_address",
    "preferred_language",
    "receive_list_copy",
    "receive_own_postings",
];
/// The moderation of a membership, which isn't one of its preferences in Mailman.
const MODERATION: &str = "moderation_action";

/// A membership of a list.
pub(crate) struct Membership {
    pub(crate) id: String,
    /// The id of the user who has the address, if there is one.
    pub(crate) user: Option<String>,
    /// True if it follows the user's preferred address.
    pub(crate) is_by_user: bool,
    moderation: Option<String>,
}

/// The owner of a new address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressOwner {
    /// The address belongs to the user now.
    ThisUser,
    /// It belongs to someone else, or to no one.
    Other,
}

#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    entries: Vec<FoundMember>,
}

#[derive(Deserialize)]
struct FoundMember {
    email: String,
    member_id: String,
    user: Option<String>,
    subscription_mode: Option<String>,
    moderation_action: Option<String>,
}

#[derive(Deserialize)]
struct User {
    user_id: String,
}

impl Mailman<'_> {
    /// Finds the membership of an address. The search is a POST, so that the address is in no log of a proxy.
    pub(crate) async fn membership(
        &self,
        list: &ListId,
        address: &Address,
    ) -> Result<Option<Membership>, MailmanError> {
        let body = json!({"list_id": list.as_str(), "subscriber": address.as_str(), "role": "member"});
        let response = self.send(&Method::POST, self.url(&["members", "find"]), Some(&body)).await;
        let found = response
            .and_then(|response| response.parse::<Found>("the members that it finds are not the expected JSON"));
        let found = found.map_err(MailmanError::of_read);
        // Mailman takes an asterisk for a wildcard.
        let mut members = found?.entries.into_iter().filter(|member| Address::new(&member.email) == *address);
        Ok(members.next().map(|member| Membership {
            id: member.member_id,
            user: member
                .user
                .as_deref()
                .and_then(|url| url.rsplit('/').find(|part| !part.is_empty()))
                .map(str::to_owned),
            is_by_user: member.subscription_mode.as_deref() == Some("as_user"),
            moderation: member.moderation_action,
        }))
    }

    /// True if an address is banned from a list, or from all of them.
    pub(crate) async fn is_banned(&self, list: &ListId, address: &Address) -> Result<bool, MailmanError> {
        for path in [&["lists", list.as_str(), "bans", address.as_str()][..], &["bans", address.as_str()]] {
            let response = self.send(&Method::GET, self.url(path), None).await?;
            match response.status {
                StatusCode::OK => return Ok(true),
                StatusCode::NOT_FOUND if response.is_mailmans() => {}
                _ => return Err(error_from(&response)),
            }
        }
        Ok(false)
    }

    /// Gives an address without a user one of its own.
    pub(crate) async fn create_user(&self, address: &Address) -> Result<(), MailmanError> {
        let body = json!({"auto_create": "true"});
        let url = self.url(&["addresses", address.as_str(), "user"]);
        self.write(&Method::POST, url, &body).await.map(drop)
    }

    /// Adds an address to a user, unless it is someone else's.
    pub(crate) async fn add_address(
        &self,
        user: &str,
        address: &Address,
        name: Option<&str>,
    ) -> Result<AddressOwner, MailmanError> {
        let body = json!({"email": address.as_str(), "display_name": name.unwrap_or_default()});
        let url = self.url(&["users", user, "addresses"]);
        let response = self.send(&Method::POST, url, Some(&body)).await;
        let added = response.and_then(|response| match response.status {
            StatusCode::CREATED => Ok(true),
            // It exists already, perhaps because an earlier run was cut short.
            StatusCode::BAD_REQUEST if !response.is_transient() => Ok(false),
            _ => Err(error_from(&response).of_no_list()),
        });
        if added? {
            return Ok(AddressOwner::ThisUser);
        }
        let url = self.url(&["addresses", address.as_str(), "user"]);
        let response = self.send(&Method::GET, url, None).await?;
        match response.status {
            StatusCode::OK => {
                let owner = response.parse::<User>("the user of an address is not the expected JSON")?;
                Ok(if owner.user_id == user { AddressOwner::ThisUser } else { AddressOwner::Other })
            }
            StatusCode::NOT_FOUND if response.is_mailmans() => Ok(AddressOwner::Other),
            _ => Err(error_from(&response).of_no_list()),
        }
    }

    /// Marks an address as verified. Without that, no membership can have it.
    pub(crate) async fn verify_address(&self, address: &Address) -> Result<(), MailmanError> {
        let url = self.url(&["addresses", address.as_str(), "verify"]);
        self.write(&Method::POST, url, &json!({})).await.map(drop)
    }

    /// Moves a membership to a verified address of the same user. The address must not be subscribed already.
    pub(crate) async fn set_address(&self, member_id: &str, address: &Address) -> Result<(), MailmanError> {
        let body = json!({"address": address.as_str()});
        self.write(&Method::PATCH, self.url(&["members", member_id]), &body).await.map(drop)
    }

    /// Reads what a person has chosen for a membership.
    pub(crate) async fn preferences(&self, membership: &Membership) -> Result<Preferences, MailmanError> {
        let mut preferences = self.preferences_at(&["members", &membership.id, "preferences"]).await?;
        preferences.extend(membership.moderation.clone().map(|action| (MODERATION.to_owned(), Value::String(action))));
        Ok(preferences)
    }

    /// Sets preferences of a membership.
    pub(crate) async fn set_preferences(&self, member_id: &str, preferences: &Preferences) -> Result<(), MailmanError> {
        let (moderation, chosen): (Vec<_>, Vec<_>) = preferences.iter().partition(|(name, _)| *name == MODERATION);
        self.set_at(&["members", member_id, "preferences"], chosen).await?;
        self.set_at(&["members", member_id], moderation).await
    }

    /// Gives an address what its person has chosen for all lists of the former one, unless they have chosen something else
    /// for it. That the former one bounced says nothing about it.
    pub(crate) async fn copy_preferences(&self, from: &Address, to: &Address) -> Result<(), MailmanError> {
        let mut preferences = self.preferences_at(&["addresses", from.as_str(), "preferences"]).await?;
        preferences.retain(|_, value| value != "by_bounces");
        if preferences.is_empty() {
            return Ok(());
        }
        let path = ["addresses", to.as_str(), "preferences"];
        let own = self.preferences_at(&path).await?;
        self.set_at(&path, preferences.iter().filter(|(name, _)| !own.contains_key(*name))).await
    }

    /// Reads what a person has chosen at this path.
    async fn preferences_at(&self, path: &[&str]) -> Result<Preferences, MailmanError> {
        let response = self.send(&Method::GET, self.url(path), None).await?;
        let preferences = response.parse("preferences are not the expected JSON");
        let mut preferences: Preferences = preferences.map_err(MailmanError::of_no_list)?;
        preferences.retain(|name, value| PREFERENCES.contains(&name.as_str()) && !value.is_null());
        Ok(preferences)
    }

    async fn set_at(
        &self,
        path: &[&str],
        values: impl IntoIterator<Item = (&String, &Value)>,
    ) -> Result<(), MailmanError> {
        // As text, because some versions of Mailman fail on JSON booleans.
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let body: BTreeMap<&str, String> =
            values.into_iter().map(|(name, value)| (name.as_str(), text(value))).collect();
        if !body.is_empty() {
            self.write(&Method::PATCH, self.url(path), &json!(body)).await?;
        }
        Ok(())
    }

    /// Sends a write that any success confirms.
    async fn write(&self, method: &Method, url: url::Url, body: &Value) -> Result<Response, MailmanError> {
        let response = self.send(method, url, Some(body)).await;
        response.and_then(|response| {
            if response.status.is_success() { Ok(response) } else { Err(error_from(&response).of_no_list()) }
        })
    }
}

impl MailmanError {
    /// Returns the error of a request that only reads, although its method is a POST.
    fn of_read(self) -> Self {
        match self {
            Self::NoResponse { cause, .. } => Self::NoResponse { cause, outcome: WriteOutcome::NotApplied },
            Self::Transient { cause, .. } => Self::Transient { cause, outcome: WriteOutcome::NotApplied },
            Self::Busy { status, retry_after, .. } => {
                Self::Busy { status, retry_after, outcome: WriteOutcome::NotApplied }
            }
            other => other,
        }
    }

    /// Returns the error of a request with a path that names no list.
    fn of_no_list(self) -> Self {
        match self {
            Self::NoSuchList => Self::Unexpected(StatusCode::NOT_FOUND),
            other => other,
        }
    }
}

shared::unprintable!(Membership);
