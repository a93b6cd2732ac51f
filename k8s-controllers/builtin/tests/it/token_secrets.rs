//! Tokens in Secrets: filled, valid, revoked with the Secret, removed with the account.

use std::time::Duration;

use jiff::Timestamp;
use k8s_apiserver::{
    ApiServer, User,
    auth::tokens::{TokenIssuer, TokenSubject},
};
use k8s_builtin::{CONTROLLER_MANAGER, Options, Selection, Signer, TokenSigner};
use k8s_controllers::Manager;
use k8s_core::{
    api::{
        ByteString,
        api::{
            authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
            core::v1::{ObjectReference, Secret, ServiceAccount},
        },
    },
    client::{Client, DeleteOptions},
    clock::Clock,
    meta::ObjectExt,
};
use k8s_store::Store;
use tokio_util::sync::CancellationToken;

use crate::lab::metadata;

const KEY: &[u8] = include_bytes!("../../../../k8s-core/apiserver/tests/data/p384-sec1.pem");

struct Key(TokenIssuer);

impl TokenSigner for Key {
    fn sign(&self, namespace: &str, account: &str, uid: &str, secret: &str) -> Result<String, String> {
        let (namespace, name, uid) = (namespace.into(), account.into(), uid.into());
        let subject = TokenSubject { namespace, name, uid, ..TokenSubject::default() };
        self.0.issue_legacy(&subject, secret).map_err(|e| e.to_string())
    }
}

/// An API server and the controller, which acts as upstream's user.
struct Cluster {
    server: ApiServer,
    stop: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Cluster {
    async fn start() -> Self {
        let signer = Signer::new(Key(TokenIssuer::new(Some(KEY)).unwrap()));
        let options = Options { root_ca: "the CA".into(), token_signer: Some(signer), ..Options::default() };
        let builder = ApiServer::builder(Store::memory()).clock(Clock::starting_at(Timestamp::UNIX_EPOCH));
        let server = builder.service_account_key(KEY.to_vec()).build().await.unwrap();
        let (stop, accounts) = (CancellationToken::new(), server.clone());
        let manager = Manager::new(server.client_as(User::new(CONTROLLER_MANAGER, &[])))
            .accounts(move |account| accounts.client_as(User::new(account, &[])))
            .runnables(Selection::none().with("serviceaccount-token").runnables(&options));
        tokio::spawn(manager.run(stop.clone()));
        Cluster { server, stop }
    }

    fn client(&self) -> Client {
        self.server.client_as(User::admin())
    }
}

fn secret(name: &str, account: &str) -> Secret {
    let mut secret = Secret { metadata: metadata(name), ..Secret::default() };
    secret.type_ = Some("kubernetes.io/service-account-token".into());
    secret.metadata.annotations =
        Some([("kubernetes.io/service-account.name".into(), account.into())].into());
    secret
}

async fn review(cluster: &Cluster, token: &[u8]) -> TokenReviewStatus {
    let token = String::from_utf8(token.to_vec()).unwrap();
    let spec = TokenReviewSpec { token, ..TokenReviewSpec::default() };
    let review = TokenReview { spec, ..TokenReview::default() };
    cluster.client().all::<TokenReview>().create(&review).await.unwrap().status.unwrap()
}

async fn settled() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_gets_its_accounts_token_and_revokes_it_when_it_goes() {
    let cluster = Cluster::start().await;
    let accounts = cluster.client().namespaced::<ServiceAccount>("default");
    let secrets = cluster.client().namespaced::<Secret>("default");
    let account = ServiceAccount { metadata: metadata("robot"), ..ServiceAccount::default() };
    let account = accounts.create(&account).await.unwrap();
    secrets.create(&secret("robot-token", "robot")).await.unwrap();
    settled().await;
    let filled = secrets.get("robot-token").await.unwrap();
    let data = filled.data.clone().unwrap();
    assert_eq!((&*data["ca.crt"].0, &*data["namespace"].0), (&b"the CA"[..], &b"default"[..]));
    assert_eq!(filled.annotation("kubernetes.io/service-account.uid"), Some(account.uid()));
    let found = review(&cluster, &data["token"].0).await;
    assert_eq!(found.authenticated, Some(true), "{found:?}");
    let user = found.user.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:default:robot"));
    assert_eq!(user.uid.as_deref(), Some(account.uid()));

    // A CA that was changed is mended, a token that is there is kept.
    let mut changed = filled.clone();
    changed.data.as_mut().unwrap().insert("ca.crt".into(), ByteString(b"another".to_vec()));
    secrets.replace("robot-token", &changed).await.unwrap();
    settled().await;
    assert_eq!(secrets.get("robot-token").await.unwrap().data, filled.data);

    // An account that lists the Secret loses the reference with it, and the token is no longer valid.
    let mut listed = accounts.get("robot").await.unwrap();
    let reference = |name: &str| ObjectReference { name: Some(name.into()), ..ObjectReference::default() };
    listed.secrets = Some(vec![reference("robot-token"), reference("other")]);
    accounts.replace("robot", &listed).await.unwrap();
    settled().await;
    secrets.delete("robot-token", &DeleteOptions::default()).await.unwrap();
    assert_ne!(review(&cluster, &data["token"].0).await.authenticated, Some(true), "revoked at once");
    settled().await;
    assert_eq!(accounts.get("robot").await.unwrap().secrets, Some(vec![reference("other")]));

    // A Secret of the same name with another token does not bring it back.
    secrets.create(&secret("robot-token", "robot")).await.unwrap();
    settled().await;
    let again = secrets.get("robot-token").await.unwrap().data.unwrap();
    let of_invalid = |secret: &mut Secret| {
        let label = ("kubernetes.io/legacy-token-invalid-since".to_owned(), "2026-01-01".to_owned());
        secret.metadata.labels = Some([label].into());
    };
    assert_eq!(review(&cluster, &again["token"].0).await.authenticated, Some(true));
    settled().await;
    let mut marked = secrets.get("robot-token").await.unwrap();
    assert_eq!(marked.label("kubernetes.io/legacy-token-last-used"), Some("1970-01-01"));
    of_invalid(&mut marked);
    secrets.replace("robot-token", &marked).await.unwrap();
    assert_ne!(review(&cluster, &again["token"].0).await.authenticated, Some(true), "marked as invalid");
}

#[tokio::test(start_paused = true)]
async fn a_secret_goes_with_its_account() {
    let cluster = Cluster::start().await;
    let accounts = cluster.client().namespaced::<ServiceAccount>("default");
    let secrets = cluster.client().namespaced::<Secret>("default");
    let account = ServiceAccount { metadata: metadata("robot"), ..ServiceAccount::default() };
    accounts.create(&account).await.unwrap();
    secrets.create(&secret("of-robot", "robot")).await.unwrap();
    secrets.create(&secret("of-nobody", "nobody")).await.unwrap();
    let mut opaque = secret("opaque", "robot");
    opaque.type_ = None;
    secrets.create(&opaque).await.unwrap();
    settled().await;
    assert!(secrets.get_opt("of-nobody").await.unwrap().is_none(), "its account does not exist");
    let token = secrets.get("of-robot").await.unwrap().data.unwrap()["token"].0.clone();
    accounts.delete("robot", &DeleteOptions::default()).await.unwrap();
    assert_ne!(review(&cluster, &token).await.authenticated, Some(true), "at once");
    settled().await;
    assert!(secrets.get_opt("of-robot").await.unwrap().is_none());
    assert!(secrets.get("opaque").await.unwrap().data.is_none(), "not one of these");
    // Another account of the same name does not get the old one's Secret.
    let mut old = secret("of-old", "robot");
    let uid = ("kubernetes.io/service-account.uid".to_owned(), "gone".to_owned());
    old.metadata.annotations.as_mut().unwrap().extend([uid]);
    accounts.create(&account).await.unwrap();
    secrets.create(&old).await.unwrap();
    settled().await;
    assert!(secrets.get_opt("of-old").await.unwrap().is_none());
}
