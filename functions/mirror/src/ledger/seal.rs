//! The seal of the ledger: its bytes as they are stored.
//!
//! | bytes | content |
//! |---|---|
//! | 4 | `NBLG` |
//! | 1 | the version of this format, 1 |
//! | 12 | the nonce, random |
//! | the rest | the compressed document, encrypted with AES-256-GCM, and its tag of 16 bytes at the end |
//!
//! The first 5 bytes are authenticated, too. The key is derived from the parameter `ledger_key` by HKDF-SHA256 with the
//! salt and the info string below, so that the parameter's bytes are used for nothing else. The compressed document is
//! its length in 4 bytes, the lowest first, and one LZ4 block.
//!
//! The seal keeps the document secret and shows any change of it. It doesn't show that an older version was put back.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use lz4_flex::block;
use secrecy::zeroize::Zeroizing;

use super::keys::{KEY_LENGTH, LedgerKeys};

const MAGIC: [u8; 4] = *b"NBLG";
const VERSION: u8 = 1;
const HEADER: [u8; 5] = [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], VERSION];
const SALT: &[u8] = b"novi-bridge";
const INFO: &[u8] = b"novi-bridge ledger AES-256-GCM 1";
/// The maximum length of a document in bytes. A broken one must not exhaust the memory.
const MAX_DOCUMENT: usize = 256 << 20;

/// A sealed ledger that can't be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenError {
    /// The bytes don't begin like a ledger, or are too few.
    #[error("the file at LEDGER isn't a ledger. Let LEDGER name another location, or move the file away")]
    NotALedger,
    /// The ledger has a format that this release doesn't know.
    #[error(
        "the ledger has the format {0}, and this release only knows the format 1. Deploy the release that wrote it"
    )]
    UnknownVersion(u8),
    /// No key opens the ledger: it was sealed with another one, or its bytes were changed.
    #[error(
        "no key opens the ledger. Add the key that sealed it to the parameter ledger_key. If that key is lost, or the \
         ledger is damaged, restore an earlier version or move it away"
    )]
    NoKeyFits,
    /// The document is longer than the maximum.
    #[error("the ledger is larger than 256 MiB. Restore an earlier version of it or move it away")]
    TooLarge,
    /// The document was sealed like this, but can't be decompressed.
    #[error("the ledger is sealed but damaged. Restore an earlier version of it or move it away")]
    Corrupt,
}

impl LedgerKeys {
    /// Seals a document with the newest key. A document of more than 256 MiB can't be opened.
    pub(crate) fn seal(&self, document: &[u8]) -> Vec<u8> {
        let mut content = block::compress_prepend_size(document);
        let key = self.newest_first().next().map(derive).expect("at least one key");
        let nonce = key
            .seal_in_place_append_tag(Aad::from(HEADER), &mut content)
            .expect("AES-GCM seals up to 64 GiB, and the random generator works since TLS does");
        [&HEADER[..], nonce.as_ref(), &content].concat()
    }

    /// Opens a sealed document with any of the keys.
    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (version, sealed) =
            sealed.strip_prefix(&MAGIC).and_then(<[u8]>::split_first).ok_or(OpenError::NotALedger)?;
        if *version != VERSION {
            return Err(OpenError::UnknownVersion(*version));
        }
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(OpenError::NotALedger)?;
        let open = |key: &[u8; KEY_LENGTH]| {
            // A key that doesn't fit spoils its copy.
            let mut content = sealed.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let length = derive(key).open_in_place(nonce, Aad::from(HEADER), &mut content).ok()?.len();
            content.truncate(length);
            Some(content)
        };
        let content = self.newest_first().find_map(open).ok_or(OpenError::NoKeyFits)?;
        decompress(&content)
    }
}

/// Derives the key of the seal from a key of the parameter.
fn derive(key: &[u8; KEY_LENGTH]) -> RandomizedNonceKey {
    let mut derived = Zeroizing::new([0; KEY_LENGTH]);
    let secret = Salt::new(HKDF_SHA256, SALT).extract(key);
    secret.expand(&[INFO], HKDF_SHA256).and_then(|key| key.fill(&mut *derived)).expect("HKDF-SHA256 gives 32 bytes");
    RandomizedNonceKey::new(&AES_256_GCM, &*derived).expect("a key of 32 bytes is one of AES-256")
}

/// Decompresses a document. Its length is checked before its memory is allocated.
fn decompress(content: &[u8]) -> Result<Vec<u8>, OpenError> {
    let (length, compressed) = block::uncompressed_size(content).map_err(|_| OpenError::Corrupt)?;
    if length > MAX_DOCUMENT {
        return Err(OpenError::TooLarge);
    }
    let document = block::decompress(compressed, length).map_err(|_| OpenError::Corrupt)?;
    if document.len() == length { Ok(document) } else { Err(OpenError::Corrupt) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};
    use shared::parameters::RawParameters;

    use super::*;
    use crate::ledger::keys::LEDGER_KEY;

    /// The bytes 0 to 31.
    const A: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const B: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const TAG: usize = 16;

    fn keys(keys: &[&str]) -> LedgerKeys {
        let parameters = Map::from_iter([(LEDGER_KEY.to_owned(), Value::from(keys))]);
        LedgerKeys::from_parameters(&RawParameters::from(parameters)).unwrap().unwrap()
    }

    /// Seals content that isn't a compressed document.
    fn seal_content(content: &[u8]) -> Vec<u8> {
        let mut content = content.to_vec();
        let nonce = derive(keys(&[A]).newest_first().next().unwrap())
            .seal_in_place_append_tag(Aad::from(HEADER), &mut content)
            .unwrap();
        [&HEADER[..], nonce.as_ref(), &content].concat()
    }

    /// A ledger that was sealed with format 1 must open forever.
    #[test]
    fn ledger_of_format_1_opens() {
        let sealed: Vec<u8> = include_str!("testdata/v1.hex")
            .split_ascii_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        let document = br#"{"people":[{"address":"ada@example.org"},{"address":"bea@example.org"}]}"#;
        assert_eq!(keys(&[A]).open(&sealed).as_deref(), Ok(&document[..]));
    }

    #[test]
    fn seal_is_random_and_hides_the_document() {
        let (keys, document) = (keys(&[A]), b"ada@example.org");
        let (one, other) = (keys.seal(document), keys.seal(document));
        assert_ne!(one, other);
        assert!(!one.windows(3).any(|bytes| bytes == b"ada"));
    }

    #[test]
    fn key_may_be_rotated() {
        let sealed = keys(&[A]).seal(b"ada");
        assert_eq!(keys(&[B, A]).open(&sealed).as_deref(), Ok(&b"ada"[..]));
        assert_eq!(keys(&[B]).open(&sealed), Err(OpenError::NoKeyFits));
        let sealed = keys(&[B, A]).seal(b"ada");
        assert_eq!(keys(&[B]).open(&sealed).as_deref(), Ok(&b"ada"[..]));
    }

    #[test]
    fn other_bytes_are_no_ledger() {
        let keys = keys(&[A]);
        for bytes in [&b""[..], b"NBL", b"NBLG", b"{\"people\":[]}", b"NBLG\x01short"] {
            assert_eq!(keys.open(bytes), Err(OpenError::NotALedger));
        }
        let mut sealed = keys.seal(b"ada");
        for version in [0, 2, 255] {
            sealed[4] = version;
            assert_eq!(keys.open(&sealed), Err(OpenError::UnknownVersion(version)));
        }
    }

    #[test]
    fn sealed_content_that_does_not_decompress_is_an_error() {
        let keys = keys(&[A]);
        let length = |length: usize| u32::try_from(length).unwrap().to_le_bytes();
        let compressed = block::compress(b"ada");
        for (content, expected) in [
            (vec![], OpenError::Corrupt),
            ([&length(MAX_DOCUMENT + 1)[..], &compressed].concat(), OpenError::TooLarge),
            ([&[255; 4][..], &compressed].concat(), OpenError::TooLarge),
            ([&length(2)[..], &compressed].concat(), OpenError::Corrupt),
            ([&length(4)[..], &compressed].concat(), OpenError::Corrupt),
            ([&length(3)[..], &[0xf0]].concat(), OpenError::Corrupt),
        ] {
            assert_eq!(keys.open(&seal_content(&content)), Err(expected));
        }
    }

    proptest! {
        #[test]
        fn document_comes_back(document: Vec<u8>, repeated in 0usize..2_000) {
            let document = [document, b"ada@example.org,".repeat(repeated)].concat();
            let sealed = keys(&[A]).seal(&document);
            prop_assert_eq!(keys(&[A]).open(&sealed).unwrap(), document);
        }

        #[test]
        fn changed_bit_or_cut_is_an_error(document: Vec<u8>, at: prop::sample::Index, bit in 0u8..8, other: Vec<u8>) {
            let keys = keys(&[B, A]);
            let sealed = keys.seal(&document);
            prop_assert!(sealed.len() >= HEADER.len() + NONCE_LEN + TAG);
            let mut changed = sealed.clone();
            changed[at.index(sealed.len())] ^= 1 << bit;
            prop_assert!(keys.open(&changed).is_err());
            prop_assert!(keys.open(&sealed[..at.index(sealed.len())]).is_err());
            prop_assert!(keys.open(&[&sealed[..], &[bit]].concat()).is_err());
            prop_assert!(keys.open(&other).is_err());
        }
    }
}
