//! That no log tells who is a member: everything personal and secret that a
//! test made up is remembered, and looked for in everything that was logged.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use aho_corasick::AhoCorasick;
use serde_json::Value;

/// What must not be logged. Clones share it.
#[derive(Clone, Default)]
pub struct Private {
    words: Arc<Mutex<BTreeSet<String>>>,
}

/// The fields of a record that identify a person.
const PERSONAL: [&str; 6] = ["UniqueID", "Name", "FirstName", "LastName", "Email", "Phone"];

impl Private {
    /// Remembers a word.
    pub fn add(&self, word: &str) {
        let word = word.trim();
        // Single letters are everywhere.
        if word.chars().count() >= 2 {
            let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
            words.insert(word.to_owned());
            words.insert(word.to_lowercase());
            words.insert(word.to_uppercase());
            words.insert(word.replace(' ', "+"));
        }
    }

    /// Remembers what identifies somebody in a record of Novi's.
    pub fn add_record(&self, record: &Value) {
        for field in PERSONAL {
            if let Some(text) = record.get(field).and_then(Value::as_str) {
                self.add(text);
            }
        }
    }

    /// How many words there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks for the remembered words in a log.
    ///
    /// # Panics
    /// Where one of them stands in it.
    pub fn assert_not_in(&self, log: &str) {
        let leaked = self.found_in(log);
        assert!(leaked.is_empty(), "the log holds what is private: {leaked:?}");
    }

    /// The remembered words that stand in `log` as words of their own.
    ///
    /// # Panics
    /// Where the words are too many to be looked for.
    #[must_use]
    pub fn found_in(&self, log: &str) -> BTreeSet<String> {
        let words: Vec<String> = self.words.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        let search = AhoCorasick::new(&words).expect("some thousands of words can be looked for");
        let is_part = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        search
            .find_overlapping_iter(log)
            .filter(|found| {
                !is_part(log[..found.start()].chars().next_back()) && !is_part(log[found.end()..].chars().next())
            })
            .map(|found| words[found.pattern()].clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_remembered_is_found_in_every_spelling_and_nothing_else() {
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
        for fine in ["planning a channel", "active: true", "39120341"] {
            assert_eq!(private.found_in(fine), BTreeSet::new(), "{fine}");
        }
    }
}
