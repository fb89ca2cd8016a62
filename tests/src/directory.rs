//! Made-up people, with the same edge cases as a real directory.

use std::collections::BTreeMap;

use fastrand::Rng;
use serde_json::{Value, json};
use uuid::Uuid;

/// First and last names in many scripts. None of them is a word that occurs in the log.
const NAMES: [(&str, &str); 24] = [
    ("Marguerite", "Delacroix"),
    ("Zoë", "Ångström"),
    ("Siobhán", "O'Riordan"),
    ("Wolfgang", "von Weizsäcker"),
    ("Đorđe", "Šćepanović"),
    ("Łucja", "Żółkiewska"),
    ("Þórunn", "Ægisdóttir"),
    ("Мария", "Щукина"),
    ("Олександр", "Ґонґадзе"),
    ("Ελένη", "Παπαδοπούλου"),
    ("ليلى", "الحسيني"),
    ("שירה", "בן־דוד"),
    ("प्रिया", "क्षीरसागर"),
    ("ஸ்ரீதேவி", "கிருஷ்ணன்"),
    ("สมหญิง", "ศรีสุวรรณ"),
    ("民子", "山田"),
    ("秀英", "欧阳"),
    ("지은", "황보"),
    ("Nguyễn", "Thị Minh Khai"),
    ("Ayşegül", "Çağlayan"),
    ("Ífẹ́dáyọ̀", "Adébáyọ̀"),
    ("J\u{fc}rgen", "E\u{301}tienne-Müller"),
    ("Xóchitl", "Ñíguez-Peñaloza"),
    ("Birtukan", "ገብረመድኅን"),
];

/// People and groups, as Novi stores them.
#[derive(Clone, Default)]
pub struct Directory {
    /// Records by UUID, as Novi returns them. A UUID without a record has been deleted.
    pub people: BTreeMap<Uuid, Value>,
    /// The members of each group, in Novi's order. A nil UUID stands for a row without an id.
    pub groups: BTreeMap<Uuid, Vec<Uuid>>,
}

impl Directory {
    /// Adds an ordinary person: active, not opted out, with an address.
    pub fn add(&mut self, rng: &mut Rng) -> Uuid {
        let id = Uuid::from_u128(rng.u128(..));
        let (first, last) = NAMES[rng.usize(..NAMES.len())];
        // Long enough that ten thousand addresses are all different.
        let address = format!("member{:012x}@mail.example.org", rng.u64(..1 << 48));
        self.people.insert(id, record(id, first, last, &address));
        id
    }

    /// Adds a group of `count` people. Together, they cover every known edge case.
    pub fn add_group(&mut self, rng: &mut Rng, count: usize) -> Uuid {
        let group = Uuid::from_u128(rng.u128(..));
        let mut members: Vec<Uuid> = (0..count).map(|_| self.add(rng)).collect();
        for (nth, id) in members.clone().into_iter().enumerate() {
            // Every third member is an edge case, each a different one.
            if nth % 3 == 0 {
                self.apply_edge_case(id, nth / 3, &members);
            }
        }
        rng.shuffle(&mut members);
        self.groups.insert(group, members);
        group
    }

    /// Adds a group of `count` ordinary people, without edge cases.
    pub fn add_plain_group(&mut self, rng: &mut Rng, count: usize) -> Uuid {
        let members = (0..count).map(|_| self.add(rng)).collect();
        let group = Uuid::from_u128(rng.u128(..));
        self.groups.insert(group, members);
        group
    }

    /// Returns a person's address, as Mailman stores it.
    #[must_use]
    pub fn address(&self, id: Uuid) -> String {
        let record = self.people.get(&id);
        let text = record.and_then(|record| record["Email"].as_str()).unwrap_or_default();
        text.trim().replace(' ', "+").to_lowercase()
    }

    fn apply_edge_case(&mut self, id: Uuid, number: usize, others: &[Uuid]) {
        let shared = others.get(1).and_then(|other| self.people.get(other)).map(|other| other["Email"].clone());
        let Some(record) = self.people.get_mut(&id) else { return };
        match number % 16 {
            0 => record["Email"] = json!(record["Email"].as_str().unwrap_or_default().replacen('@', " lists@", 1)),
            1 => record["Email"] = json!(format!("  {} ", record["Email"].as_str().unwrap_or_default().to_uppercase())),
            2 => record["Email"] = Value::Null,
            3 => record["Email"] = json!(""),
            4 => record["Active"] = json!(false),
            5 => record["UnsubscribeFromEmails"] = json!(true),
            6 => (record["FirstName"], record["LastName"]) = (json!(""), Value::Null),
            7 => (record["CustomerType"], record["Name"]) = (json!("Company"), json!("Clínica Tlaxcaltecas")),
            8 => record["Email"] = shared.unwrap_or_default(),
            9 => record["Email"] = json!("no address at all"),
            10 => record["Email"] = json!("ünïcode@mail.example.org"),
            11 => *record = json!({}),
            12 => {
                self.people.remove(&id);
            }
            13 => record["Name"] = Value::Null,
            14 => record["LastName"] = json!(" "),
            _ => record["Groups"] = json!([{"Name": "\u{0}\u{7f}", "Nested": {"Email": 5}}]),
        }
    }

    /// Returns the record of a person, to change it.
    ///
    /// # Panics
    /// Panics if the directory has no person with this UUID.
    pub fn person(&mut self, id: Uuid) -> &mut Value {
        self.people.get_mut(&id).expect("the directory has this person")
    }
}

/// Returns a complete record.
#[must_use]
pub fn record(id: Uuid, first: &str, last: &str, email: &str) -> Value {
    json!({
        "UniqueID": id.hyphenated().to_string(), "ParentCustomerUniqueID": null, "ParentMemberName": null,
        "Name": format!("{first} {last}"), "FirstName": first, "LastName": last, "Suffix": null,
        "Active": true, "Email": email, "Phone": null,
        "BillingAddress": {"Address1": null, "Address2": null, "City": null, "ZipCode": null, "StateProvince": null, "Country": null},
        "PersonalEmail": null, "Image": "", "OriginalJoinDate": null, "MemberSince": null, "MembershipExpires": null,
        "MemberStatus": "non_member", "DuesPayerUniqueID": null, "HideOnWebsite": false,
        "UnsubscribeFromEmails": false, "Approved": true, "AutoRenew": false, "MemberType": null,
        "CustomerType": "Person", "CustomFields": {}, "SpecifiedSystemFields": ["Email"], "Awards": [],
        "Education": [], "Groups": null, "CreatedDate": "2018-10-28T13:31:52.4566667-04:00",
        "LastUpdatedDate": "2019-01-17T09:05:33.09-05:00", "PrimaryContactUniqueId": null, "BillingContactUniqueId": null,
    })
}
