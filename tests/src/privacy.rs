//! Checks that logs don't reveal who is a member: collects all personal and
//! secret data that a test makes up, and searches everything that was logged for it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use aho_corasick::AhoCorasick;
use serde_json::Value;

/// Words that must not be logged. Clones share them.
#[derive(Clone, Default)]
pub struct Private {
    words: Arc<Mutex<BTreeSet<String>>>,
}

/// The fields of a record that identify a person.
const PERSONAL: [&str; 6] = ["UniqueID", "Name", "FirstName", "LastName", "Email", "Phone"];

impl Private {
    /// Adds a word.
    pub fn add(&self, word: &str) {
        let word = word.trim();
        // Single letters occur everywhere.
        if word.chars().count() >= 2 {
            let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
            words.insert(word.to_owned());
            words.insert(word.to_lowercase());
            words.insert(word.to_uppercase());
            words.insert(word.replace(' ', "+"));
        }
    }

    /// Adds the fields of one of Novi's records that identify a person.
    pub fn add_record(&self, record: &Value) {
        for field in PERSONAL {
            if let Some(text) = record.get(field).and_then(Value::as_str) {
                self.add(text);
            }
        }
    }

    /// Returns the number of words.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// True if there are no words.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asserts that a log doesn't contain any of the words.
    ///
    /// # Panics
    /// Panics if the log contains one.
    pub fn assert_not_in(&self, log: &str) {
        let leaked = self.found_in(log);
        assert!(leaked.is_empty(), "the log contains private data: {leaked:?}");
    }

    /// Returns the words that `log` contains as separate words, not as parts of others.
    ///
    /// # Panics
    /// Panics if there are too many words to search for.
    #[must_use]
    pub fn found_in(&self, log: &str) -> BTreeSet<String> {
        let words: Vec<String> = self.words.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        let search = AhoCorasick::new(&words).expect("searching for some thousands of words is possible");
        let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        search
            .find_overlapping_iter(log)
            .filter(|found| {
                !is_word(log[..found.start()].chars().next_back()) && !is_word(log[found.end()..].chars().next())
            })
            .map(|found| words[found.pattern()].clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_words_are_found_in_every_spelling_and_nothing_else_is() {
        let private = Private::default();
        private.add_record(&serde_json::json!({
            "UniqueID": "39120341-3c8e-47b0-9a40-45b5659b2044", "Name": "Ann Lee", "FirstName": "Ann",
            "Email": "ann lists@example.org", "Active": true, "LastName": null,
        }));
        for leak in [
            "GET /customers/39120341-3C8E-47B0-9A40-45B5659B2044",
            "{\"name\":\"ann\"}",
            "to=ann+lists@example.org",
            "ANN LEE",
        ] {
            assert!(!private.found_in(leak).is_empty(), "{leak}");
        }
        for harmless in ["planning a channel", "active: true", "39120341"] {
            assert_eq!(private.found_in(harmless), BTreeSet::new(), "{harmless}");
        }
    }
}
