use proptest::prelude::*;

use super::{envelope::KeyService, *};
use crate::{Expect, Local, Meta, Opaque, Store};

fn key(name: &str) -> Key {
    let byte = name.bytes().last().unwrap_or(0);
    Key::new(Algorithm::AesGcm, name, &[byte; 32]).unwrap()
}

/// A sealer of secrets with these keys, of which the first one seals.
fn sealer(names: &[&str], plain: bool) -> Sealer {
    let mut providers = vec![Provider::keys(names.iter().map(|name| key(name)).collect())];
    if plain {
        providers.push(Provider::Identity);
    }
    Sealer::new(vec![Rule::new(["secrets"], providers)])
}

fn opened(sealer: &Sealer, at: &str, record: Bytes) -> Result<Bytes, SealError> {
    sealer.open("secrets", at, record)
}

#[test]
fn records_that_were_changed_or_moved_are_refused() {
    let with = sealer(&["k1"], false);
    let record = with.seal("secrets", "default/a", "canary".into()).unwrap();
    assert!(!record.windows(6).any(|part| part == b"canary"));
    assert_eq!(opened(&with, "default/a", record.clone()).unwrap(), "canary");
    for i in 0..record.len() {
        let mut damaged = record.to_vec();
        damaged[i] ^= 1;
        assert!(opened(&with, "default/a", damaged.into()).is_err(), "byte {i}");
    }
    for end in 0..record.len() {
        assert!(opened(&with, "default/a", record.slice(..end)).is_err(), "{end} bytes");
    }
    let moved = opened(&with, "default/b", record.clone()).unwrap_err();
    assert!(matches!(moved, SealError::Damaged { .. }), "{moved}");
    assert!(with.open("configmaps", "default/a", record.clone()).is_err());
    let other = opened(&sealer(&["k2"], false), "default/a", record).unwrap_err();
    assert!(matches!(&other, SealError::NoKey { name, .. } if name == "k1"), "{other}");
    assert!(matches!(opened(&with, "default/a", "{}".into()), Err(SealError::Plain { .. })));
    assert_eq!(opened(&sealer(&["k1"], true), "default/a", "{}".into()).unwrap(), "{}");
}

#[test]
fn every_algorithm_opens_what_it_sealed_and_keys_of_two_rotate() {
    let one = |algorithm: Algorithm| {
        let length = *algorithm.secret_lengths().last().unwrap();
        Key::new(algorithm, "k1", &vec![7; length]).unwrap()
    };
    let sealer = |algorithms: &[Algorithm]| {
        let providers = algorithms.iter().map(|algorithm| Provider::keys(vec![one(*algorithm)])).collect();
        Sealer::new(vec![Rule::new(["secrets"], providers)])
    };
    for (old, new) in [
        (Algorithm::AesCbc, Algorithm::Secretbox),
        (Algorithm::Secretbox, Algorithm::AesGcm),
        (Algorithm::AesGcm, Algorithm::AesCbc),
    ] {
        for text in ["", "canary", "sixteen bytes 16", &"long ".repeat(500)] {
            let record = sealer(&[old]).seal("secrets", "a", text.to_owned().into()).unwrap();
            assert!(record.starts_with(format!("k8s:enc:{}:v1:k1:", old.name()).as_bytes()));
            let both = sealer(&[new, old]);
            let renewed = both.renewed("secrets", "a", &record).unwrap().expect("of another algorithm");
            assert_eq!(opened(&both, "a", record.clone()).unwrap(), text);
            assert_eq!(opened(&sealer(&[new]), "a", renewed).unwrap(), text);
            let other = opened(&sealer(&[new]), "a", record.slice(..record.len() - 1)).unwrap_err();
            assert!(matches!(other, SealError::NoKey { .. }), "{other}");
            assert!(opened(&both, "a", record.slice(..record.len() - 1)).is_err());
        }
    }
}

/// A service that adds a number to each byte; `None`: it is not there.
#[derive(Debug, Default)]
struct Vault {
    shift: Mutex<Option<u8>>,
    asked: std::sync::atomic::AtomicUsize,
}

impl Vault {
    fn set(&self, shift: Option<u8>) {
        *self.shift.lock().unwrap() = shift;
    }

    fn now(&self) -> Result<u8, String> {
        self.shift.lock().unwrap().ok_or_else(|| "no answer".to_owned())
    }
}

impl KeyService for Arc<Vault> {
    fn key_id(&self) -> Result<String, String> {
        self.now().map(|shift| format!("key-{shift}"))
    }

    fn encrypt(&self, plain: &[u8]) -> Result<WrappedKey, String> {
        let shift = self.now()?;
        let bytes = plain.iter().map(|byte| byte.wrapping_add(shift)).collect();
        let annotations = [("shift.example.com".to_owned(), vec![shift])].into();
        Ok(WrappedKey { key_id: format!("key-{shift}"), bytes, annotations })
    }

    fn decrypt(&self, wrapped: &WrappedKey) -> Result<Vec<u8>, String> {
        self.now()?;
        self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let shift = wrapped.annotations["shift.example.com"][0];
        Ok(wrapped.bytes.iter().map(|byte| byte.wrapping_sub(shift)).collect())
    }
}

#[test]
fn a_service_keeps_the_key_of_keys() {
    let vault = Arc::new(Vault::default());
    vault.set(Some(1));
    let sealer = || {
        let envelope = Arc::new(Envelope::new("vault", vault.clone()).unwrap());
        (Sealer::new(vec![Rule::new(["secrets"], vec![Provider::Service(envelope.clone())])]), envelope)
    };
    let asked = || vault.asked.load(std::sync::atomic::Ordering::Relaxed);
    let (with, envelope) = sealer();
    let seal = |at: &str| with.seal("secrets", at, "canary".into()).unwrap();
    let (first, second) = (seal("a"), seal("b"));
    assert!(first.starts_with(b"k8s:enc:kms:v2:vault:") && !first.windows(6).any(|part| part == b"canary"));
    assert_eq!((opened(&with, "a", first.clone()).unwrap(), asked()), ("canary".into(), 0), "its own seed");
    assert_eq!(with.renewed("secrets", "a", &first).unwrap(), None);
    assert!(matches!(opened(&with, "b", first.clone()), Err(SealError::Damaged { .. })), "it was moved");
    for end in 0..first.len() {
        assert!(opened(&with, "a", first.slice(..end)).is_err(), "{end} bytes");
    }

    // Another process asks the service once for all records of a seed.
    let before = asked();
    let (other, _) = sealer();
    assert_eq!(opened(&other, "a", first.clone()).unwrap(), "canary");
    assert_eq!(opened(&other, "b", second).unwrap(), "canary");
    assert_eq!(asked(), before + 1);

    // While the service is away writes go on, until its user says that it was for too long.
    vault.set(None);
    assert!(envelope.refresh().is_err());
    assert!(with.seal("secrets", "a", "x".into()).is_ok());
    envelope.suspend("no answer for 3 minutes");
    let refused = with.seal("secrets", "a", "x".into()).unwrap_err().to_string();
    assert!(refused.contains("key service \"vault\": no answer for 3 minutes"), "{refused}");
    let (late, _) = sealer();
    assert!(matches!(opened(&late, "a", first.clone()), Err(SealError::Service { .. })));

    // The service's key changes: old records are read and made anew.
    vault.set(Some(2));
    envelope.refresh().unwrap();
    assert_eq!(opened(&with, "a", first.clone()).unwrap(), "canary");
    let renewed = with.renewed("secrets", "a", &first).unwrap().expect("of the key before");
    assert_eq!(with.renewed("secrets", "a", &renewed).unwrap(), None);
    assert_eq!(opened(&with, "a", renewed).unwrap(), "canary");
}

#[test]
fn keys_rotate() {
    let old = sealer(&["k1"], false).seal("secrets", "a", "x".into()).unwrap();
    let both = sealer(&["k2", "k1"], false);
    let new = both.renewed("secrets", "a", &old).unwrap().expect("it has the old key");
    assert!(new.starts_with(b"k8s:enc:aesgcm:v1:k2:"));
    assert_eq!(both.renewed("secrets", "a", &new).unwrap(), None);
    assert!(
        sealer(&["k3"], false).renewed("secrets", "a", &old).is_err(),
        "nothing is lost for want of a key"
    );
    let plain = both.renewed("secrets", "a", b"{}").unwrap().expect("it was plain");
    assert_eq!(opened(&both, "a", plain).unwrap(), "{}");
    // Identity first takes the encryption off.
    let off =
        Sealer::new(vec![Rule::new(["secrets"], vec![Provider::Identity, Provider::keys(vec![key("k1")])])]);
    assert_eq!(off.renewed("secrets", "a", &old).unwrap().unwrap(), "x");
}

#[cfg(feature = "embedded")]
mod files {
    use super::*;
    use crate::Embedded;

    fn open(path: &std::path::Path, with: Sealer) -> Result<Store, BackendError> {
        let log = Embedded::open(path).map_err(|e| BackendError(e.to_string()))?;
        Store::open(Sealed::new(Local::new(log), with), Opaque)
    }

    fn holds(path: &std::path::Path, text: &[u8]) -> bool {
        std::fs::read(path).unwrap().windows(text.len()).any(|part| part == text)
    }

    async fn put(store: &Store, resource: &str, key: &str, expect: Expect, bytes: &'static str) -> u64 {
        store.put(resource, key, expect, Meta::default(), |_| bytes.into()).await.unwrap().revision
    }

    /// The store's threads close the file a little after the store is dropped.
    fn reopened(path: &std::path::Path, names: &[&str]) -> Result<Store, BackendError> {
        for _ in 0..500 {
            match open(path, sealer(names, false)) {
                Err(e) if e.to_string().contains("in use") => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                other => return other,
            }
        }
        panic!("the file stays open");
    }

    #[tokio::test]
    async fn the_file_holds_no_secret_and_the_store_shows_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        let store = open(&path, sealer(&["k1"], false)).unwrap();
        let first = put(&store, "secrets", "default/a", Expect::Absent, "canary-one").await;
        put(&store, "secrets", "default/a", Expect::Revision(first), "canary-two").await;
        put(&store, "configmaps", "default/a", Expect::Absent, "plain-text").await;
        assert_eq!(store.get("secrets", "default/a").unwrap().json, "canary-two");
        let mut watch = store.watch("secrets", first - 1);
        let seen: Vec<Bytes> =
            watch.take(10).unwrap().iter().map(|event| event.object.json.clone()).collect();
        assert_eq!(seen, ["canary-one", "canary-two"]);
        drop((watch, store));
        let again = reopened(&path, &["k1"]).unwrap();
        assert_eq!(again.get("secrets", "default/a").unwrap().json, "canary-two");
        drop(again);
        assert!(holds(&path, b"plain-text") && !holds(&path, b"canary-"));
        let refused = reopened(&path, &["k2"]).map(drop).unwrap_err().to_string();
        assert_eq!(
            refused,
            "secrets \"default/a\" is encrypted with the key \"k1\", which is not among the keys for it"
        );
        // Nothing is lost by the refusal.
        assert_eq!(reopened(&path, &["k1"]).unwrap().get("secrets", "default/a").unwrap().json, "canary-two");
    }

    #[tokio::test]
    async fn an_older_file_is_converted_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        let plain = || Store::open(Local::new(Embedded::open(&path).unwrap()), Opaque).unwrap();
        let store = plain();
        let revision = put(&store, "secrets", "default/a", Expect::Absent, "canary-old").await;
        put(&store, "pods", "default/a", Expect::Absent, "a pod").await;
        let newest = store.revision();
        drop(store);
        let log = loop {
            match Embedded::open(&path) {
                Ok(log) => break log,
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
        };
        assert!(!log.any(is_sealed).unwrap() && holds(&path, b"canary-old"));
        let with = sealer(&["k1"], false);
        let (log, changed) = log.convert(&mut |r, k, bytes| with.renewed(r, k, bytes)).unwrap();
        assert_eq!(changed, 1);
        assert!(log.any(is_sealed).unwrap() && !holds(&path, b"canary-old"));
        let (log, changed) = log.convert(&mut |r, k, bytes| with.renewed(r, k, bytes)).unwrap();
        assert_eq!(changed, 0);
        let store = Store::open(Sealed::new(Local::new(log), with), Opaque).unwrap();
        assert_eq!(store.revision(), newest, "revisions go on");
        let stored = store.get("secrets", "default/a").unwrap();
        assert_eq!((stored.revision, &stored.json[..]), (revision, &b"canary-old"[..]));
        assert_eq!(store.get("pods", "default/a").unwrap().json, "a pod");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(at in "[a-z/]{1,20}", text in proptest::collection::vec(any::<u8>(), 0..400)) {
        let with = sealer(&["k2", "k1"], false);
        let record = with.seal("secrets", &at, text.clone().into()).unwrap();
        prop_assert!(is_sealed(&record));
        prop_assert_eq!(with.open("secrets", &at, record).unwrap(), Bytes::from(text));
    }

    #[test]
    fn no_record_makes_it_panic(record in proptest::collection::vec(any::<u8>(), 0..80), prefixed: bool) {
        let mut bytes = if prefixed { b"k8s:enc:aesgcm:v1:k1:".to_vec() } else { Vec::new() };
        bytes.extend(record);
        let _ = sealer(&["k1"], true).open("secrets", "a", bytes.into());
    }
}
