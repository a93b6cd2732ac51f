//! The ciphers of keys: how bytes are sealed with one secret.
//!
//! | algorithm | secret, bytes | record after the name | what a changed or moved record is |
//! | --- | --- | --- | --- |
//! | `aesgcm` | 16 or 32 | nonce of 12, text, tag of 16 | refused |
//! | `secretbox` | 32 | nonce of 24, tag of 16, text | changed: refused; moved: not noticed |
//! | `aescbc` | 16, 24 or 32 | first block of 16, padded text | mostly refused; nothing is sure |
//!
//! The last two are as upstream's, so that its records can be read. AES-GCM authenticates the object's place
//! too.

use aes::{
    Aes128, Aes192, Aes256,
    cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit, block_padding::Pkcs7},
};
use crypto_secretbox::{AeadInPlace, KeyInit, XSalsa20Poly1305};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::keys::KeyError;

/// A way to seal bytes with a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// AES in Galois/counter mode. Secrets have 16 or 32 bytes.
    AesGcm,
    /// AES in cipher block chaining, padded as PKCS 7 says. Secrets have 16, 24 or 32 bytes. It does not
    /// authenticate: choose another one for new keys.
    AesCbc,
    /// XSalsa20 and Poly1305, as NaCl's secretbox. Secrets have 32 bytes.
    Secretbox,
}

/// Length of AES-GCM's nonce, bytes.
const GCM_NONCE: usize = 12;
/// Length of a block of AES, bytes.
const BLOCK: usize = 16;
/// Lengths of secretbox' nonce and tag, bytes.
const BOX_NONCE: usize = 24;
const BOX_TAG: usize = 16;

impl Algorithm {
    /// Returns the algorithm's name, as an EncryptionConfiguration and a record have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::AesGcm => "aesgcm",
            Algorithm::AesCbc => "aescbc",
            Algorithm::Secretbox => "secretbox",
        }
    }

    /// Returns the algorithm of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Algorithm::AesGcm, Algorithm::AesCbc, Algorithm::Secretbox].into_iter().find(|a| a.name() == name)
    }

    /// Returns the lengths that a secret may have, bytes.
    #[must_use]
    pub fn secret_lengths(self) -> &'static [usize] {
        match self {
            Algorithm::AesGcm => &[16, 32],
            Algorithm::AesCbc => &[16, 24, 32],
            Algorithm::Secretbox => &[32],
        }
    }

    /// Returns how many random bytes a record needs.
    pub(super) fn nonce_length(self) -> usize {
        match self {
            Algorithm::AesGcm => GCM_NONCE,
            Algorithm::AesCbc => BLOCK,
            Algorithm::Secretbox => BOX_NONCE,
        }
    }
}

/// A secret, ready for its algorithm.
pub(super) enum Cipher {
    AesGcm(Box<LessSafeKey>),
    AesCbc(Vec<u8>),
    Secretbox(Box<XSalsa20Poly1305>),
}

impl Cipher {
    pub(super) fn new(algorithm: Algorithm, secret: &[u8]) -> Result<Self, KeyError> {
        let wrong = || KeyError::Length { algorithm, found: secret.len() };
        if !algorithm.secret_lengths().contains(&secret.len()) {
            return Err(wrong());
        }
        Ok(match algorithm {
            Algorithm::AesGcm => {
                let aes = if secret.len() == 16 { &AES_128_GCM } else { &AES_256_GCM };
                let key = UnboundKey::new(aes, secret).map_err(|_| wrong())?;
                Cipher::AesGcm(Box::new(LessSafeKey::new(key)))
            }
            Algorithm::AesCbc => Cipher::AesCbc(secret.to_vec()),
            Algorithm::Secretbox => {
                Cipher::Secretbox(Box::new(XSalsa20Poly1305::new_from_slice(secret).map_err(|_| wrong())?))
            }
        })
    }

    /// Takes a key of AES-GCM that was made elsewhere.
    pub(super) fn of_gcm(key: UnboundKey) -> Self {
        Cipher::AesGcm(Box::new(LessSafeKey::new(key)))
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Cipher::AesGcm(_) => Algorithm::AesGcm,
            Cipher::AesCbc(_) => Algorithm::AesCbc,
            Cipher::Secretbox(_) => Algorithm::Secretbox,
        }
    }

    /// Appends the sealed form of `plain` to `record`: nonce, text and tag. `place` is authenticated where
    /// the algorithm can. `nonce` has the algorithm's length.
    pub(super) fn seal(&self, place: &[u8], plain: &[u8], nonce: &[u8], record: &mut Vec<u8>) {
        record.extend_from_slice(nonce);
        let sealed = match self {
            Cipher::AesGcm(key) => {
                let mut text = plain.to_vec();
                let done = Nonce::try_assume_unique_for_key(nonce)
                    .and_then(|nonce| key.seal_in_place_append_tag(nonce, Aad::from(place), &mut text));
                record.extend_from_slice(&text);
                done.is_ok()
            }
            Cipher::AesCbc(secret) => {
                let text = match secret.len() {
                    16 => chained::<Aes128>(secret, nonce, plain),
                    24 => chained::<Aes192>(secret, nonce, plain),
                    _ => chained::<Aes256>(secret, nonce, plain),
                };
                record.extend_from_slice(text.as_deref().unwrap_or_default());
                text.is_some()
            }
            Cipher::Secretbox(key) => {
                let mut text = plain.to_vec();
                let tag = <[u8; BOX_NONCE]>::try_from(nonce)
                    .ok()
                    .and_then(|nonce| key.encrypt_in_place_detached(&nonce.into(), b"", &mut text).ok());
                record.extend_from_slice(tag.as_deref().unwrap_or_default());
                record.extend_from_slice(&text);
                tag.is_some()
            }
        };
        // Only a nonce of a wrong length or a text of some GiB is refused; neither can be here.
        assert!(sealed, "an object of {} bytes cannot be sealed", plain.len());
    }

    /// Opens what [`seal`](Self::seal) made; `None` if it is damaged or of another key.
    pub(super) fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        match self {
            Cipher::AesGcm(key) => {
                let (nonce, text) = sealed.split_first_chunk::<GCM_NONCE>()?;
                let (nonce, mut text) = (Nonce::assume_unique_for_key(*nonce), text.to_vec());
                let length = key.open_in_place(nonce, Aad::from(place), &mut text).ok()?.len();
                text.truncate(length);
                Some(text)
            }
            Cipher::AesCbc(secret) => {
                let (first, text) = sealed.split_first_chunk::<BLOCK>()?;
                match secret.len() {
                    16 => unchained::<Aes128>(secret, first, text),
                    24 => unchained::<Aes192>(secret, first, text),
                    _ => unchained::<Aes256>(secret, first, text),
                }
            }
            Cipher::Secretbox(key) => {
                let (nonce, rest) = sealed.split_first_chunk::<BOX_NONCE>()?;
                let (tag, text) = rest.split_first_chunk::<BOX_TAG>()?;
                let mut text = text.to_vec();
                let tag = (*tag).into();
                key.decrypt_in_place_detached(&(*nonce).into(), b"", &mut text, &tag).ok()?;
                Some(text)
            }
        }
    }
}

fn chained<C>(secret: &[u8], first: &[u8], plain: &[u8]) -> Option<Vec<u8>>
where
    C: aes::cipher::BlockCipher + aes::cipher::BlockEncryptMut + aes::cipher::KeyInit,
{
    let chain = cbc::Encryptor::<C>::new_from_slices(secret, first).ok()?;
    Some(chain.encrypt_padded_vec_mut::<Pkcs7>(plain))
}

fn unchained<C>(secret: &[u8], first: &[u8], text: &[u8]) -> Option<Vec<u8>>
where
    C: aes::cipher::BlockCipher + aes::cipher::BlockDecryptMut + aes::cipher::KeyInit,
{
    let chain = cbc::Decryptor::<C>::new_from_slices(secret, first).ok()?;
    chain.decrypt_padded_vec_mut::<Pkcs7>(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn chaining_is_the_standards() {
        // NIST SP 800-38A, F.2.1 and F.2.5: the first block of CBC-AES128 and CBC-AES256.
        let first = hex("000102030405060708090a0b0c0d0e0f");
        let plain = hex("6bc1bee22e409f96e93d7e117393172a");
        for (secret, sealed) in [
            ("2b7e151628aed2a6abf7158809cf4f3c", "7649abac8119b246cee98e9b12e9197d"),
            (
                "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
                "f58c4c04d6e5f1ba779eabfb5f7bfbd6",
            ),
        ] {
            let cipher = Cipher::new(Algorithm::AesCbc, &hex(secret)).unwrap();
            let mut record = Vec::new();
            cipher.seal(b"", &plain, &first, &mut record);
            assert_eq!(record[..16], first);
            assert_eq!(record[16..32], hex(sealed));
            // A whole block of padding follows a whole block of text.
            assert_eq!(record.len(), 48);
            assert_eq!(cipher.open(b"elsewhere", &record).unwrap(), plain);
        }
    }

    #[test]
    fn a_box_is_nacls() {
        // From the tests of NaCl (tests/secretbox.c): the tag and the beginning of the text.
        let secret = hex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let nonce = hex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
        let plain = hex("be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffc");
        let cipher = Cipher::new(Algorithm::Secretbox, &secret).unwrap();
        let mut record = Vec::new();
        cipher.seal(b"", &plain, &nonce, &mut record);
        assert_eq!(record[40..], hex("8e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a"));
        assert_eq!(cipher.open(b"", &record).unwrap(), plain);
        record[30] ^= 1;
        assert_eq!(cipher.open(b"", &record), None);
    }
}
