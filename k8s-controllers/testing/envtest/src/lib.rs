//! An API server for the tests of an operator, with the interface of the `envtest` crate.
//!
//! Tests that were written for `envtest` run without Go, etcd or downloads, after one changed line:
//!
//! ```toml
//! [dev-dependencies]
//! envtest = { package = "k8s-envtest", version = "0.1" }
//! ```
//!
//! ```
//! # use k8s_envtest as envtest;
//! use envtest::Environment;
//! use kube::{Api, CustomResource, CustomResourceExt, api::PostParams};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
//! #[kube(group = "example.com", version = "v1", kind = "Shop", namespaced)]
//! struct ShopSpec { sells: String }
//!
//! // In a #[tokio::test]:
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Environment::default().with_crds(vec![Shop::crd()])?.create().await?;
//! let shops: Api<Shop> = Api::namespaced(server.client()?, "default");
//! shops.create(&PostParams::default(), &Shop::new("corner", ShopSpec { sells: "tea".into() })).await?;
//! assert_eq!(shops.get("corner").await?.spec.sells, "tea");
//! server.destroy().await?;
//! # Ok(()) }
//! ```
//!
//! # Other versions of kube
//!
//! [`Server::client`] is of kube 5. With another version, take this crate without default features and read
//! the kubeconfig into its own type:
//!
//! ```
//! # async fn example(server: k8s_envtest::Server) -> Result<(), Box<dyn std::error::Error>> {
//! let kubeconfig: kube::config::Kubeconfig = server.kubeconfig_as()?;
//! let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
//! let client = kube::Client::try_from(config)?;
//! # Ok(()) }
//! ```
//!
//! # Programs
//!
//! A program that makes its client in `main` is started with [`Server::command`], which sets `KUBECONFIG`.
//! For suites in other languages there is `hyperkube envtest`.
//!
//! # Guarantees
//!
//! 1. Each server has a thread and an address of its own: tests run side by side, and a blocked test does not
//!    block its server.
//! 2. It listens on a loopback address only. Requests need the token of its kubeconfig.
//! 3. When the last clone of a [`Server`] is dropped, everything that it started has ended.
//!
//! As in Go's envtest, no controllers run: nothing makes pods of a Deployment, and nothing deletes the
//! dependents of an owner. [`Environment::with_nodes`] adds all controllers, the scheduler and simulated
//! nodes.
//!
//! Not here: virtual time, fault injection and the report of needed permissions (`k8s_testing::Lab` has
//! those).

mod environment;
mod error;
mod manifests;
mod server;

pub use environment::{BinaryAssetsSettings, CRDInstallOptions, Environment};
pub use error::{EnvironmentError, ServerError};
pub use server::Server;
