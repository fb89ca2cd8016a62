//! Reads how Mailman is set up, for the probe. Sends only GETs.

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::mailman::client::Mailman;
use crate::mailman::error::MailmanError;
use crate::mailman::response::error_from;
use crate::mapping::ListId;

/// The version of Mailman.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

/// The first version that the mirror works with.
pub(crate) const OLDEST_VERSION: Version = Version(3, 3, 3);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(major, minor, patch) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

impl Version {
    /// Finds the version in a text such as `GNU Mailman 3.3.10 (Tom Sawyer)`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let mut parts = word.split('.').map(|part| {
                // A version such as 3.3.10b1 counts as 3.3.10.
                let digits = part.find(|c: char| !c.is_ascii_digit()).map_or(part, |end| &part[..end]);
                digits.parse().ok()
            });
            Some(Self(parts.next()??, parts.next()??, parts.next()??))
        })
    }
}

/// The settings of a list that matter to the mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct ListSettings {
    pub(crate) admin_notify_mchanges: Option<bool>,
    pub(crate) send_welcome_message: Option<bool>,
    pub(crate) send_goodbye_message: Option<bool>,
    pub(crate) subscription_policy: Option<Policy>,
    pub(crate) unsubscription_policy: Option<Policy>,
}

/// Mailman's policy for subscriptions or unsubscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Policy {
    Open,
    Confirm,
    Moderate,
    ConfirmThenModerate,
    #[serde(other)]
    Other,
}

/// A response to a GET.
enum Found<T> {
    /// A 200 with the expected JSON.
    Yes(T),
    /// A 404 of Mailman itself.
    No,
}

impl Mailman<'_> {
    /// Reads the version. Returns `None` if the response doesn't contain one.
    pub(crate) async fn version(&self) -> Result<Option<Version>, MailmanError> {
        #[derive(Deserialize)]
        struct Versions {
            mailman_version: String,
        }
        match self.inspect::<Versions>(&["system", "versions"]).await? {
            Found::Yes(versions) => Ok(Version::parse(&versions.mailman_version)),
            Found::No => Ok(None),
        }
    }

    /// Reads the number of members of a list.
    pub(crate) async fn member_count(&self, list: &ListId) -> Result<u64, MailmanError> {
        #[derive(Deserialize)]
        struct List {
            member_count: u64,
        }
        match self.inspect::<List>(&["lists", list.as_str()]).await? {
            Found::Yes(found) => Ok(found.member_count),
            Found::No => Err(MailmanError::NoSuchList),
        }
    }

    /// Reads the settings of a list.
    pub(crate) async fn list_settings(&self, list: &ListId) -> Result<ListSettings, MailmanError> {
        match self.inspect(&["lists", list.as_str(), "config"]).await? {
            Found::Yes(settings) => Ok(settings),
            Found::No => Err(MailmanError::NoSuchList),
        }
    }

    /// Counts the pending subscription requests of a list. Returns `None` if this Mailman is too old to count them.
    pub(crate) async fn pending_requests(&self, list: &ListId) -> Result<Option<u64>, MailmanError> {
        #[derive(Deserialize)]
        struct Count {
            count: u64,
        }
        match self.inspect::<Count>(&["lists", list.as_str(), "requests", "count"]).await? {
            Found::Yes(found) => Ok(Some(found.count)),
            Found::No => Ok(None),
        }
    }

    async fn inspect<T: serde::de::DeserializeOwned>(&self, segments: &[&str]) -> Result<Found<T>, MailmanError> {
        let response = self.send(&Method::GET, self.url(segments), None).await?;
        match response.status {
            // Such as the web page of another server.
            StatusCode::OK => serde_json::from_slice(&response.body)
                .map(Found::Yes)
                .map_err(|_| MailmanError::NotMailman(StatusCode::OK)),
            _ => match error_from(&response) {
                MailmanError::NoSuchList => Ok(Found::No),
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_found_in_mailmans_text() {
        for (text, expected) in [
            ("GNU Mailman 3.3.10 (Tom Sawyer)", Some(Version(3, 3, 10))),
            ("GNU Mailman 3.3.5b1+ (X)", Some(Version(3, 3, 5))),
            ("3.4.0", Some(Version(3, 4, 0))),
            ("GNU Mailman 3.3 (X)", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(text), expected, "{text}");
        }
        assert!(Version(3, 3, 5) < Version(3, 3, 10));
    }

    #[test]
    fn settings_tolerate_unknown_values_and_other_keys() {
        let settings: ListSettings = serde_json::from_str(
            r#"{"admin_notify_mchanges":true,"subscription_policy":"confirm_then_moderate",
                "unsubscription_policy":"new","acceptable_aliases":[],"moderator_password":null}"#,
        )
        .unwrap();
        assert_eq!(settings.admin_notify_mchanges, Some(true));
        assert_eq!(settings.subscription_policy, Some(Policy::ConfirmThenModerate));
        assert_eq!((settings.unsubscription_policy, settings.send_welcome_message), (Some(Policy::Other), None));
    }
}
