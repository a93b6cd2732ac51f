//! You have a kube-rs operator: from `cargo add` to the first fault that breaks it. This module is a page.
//!
//! # Add it
//!
//! ```sh
//! cargo add --dev k8s-testing
//! ```
//!
//! The version of kube does not matter (0.95 and later were tried): `kube::Client::new` takes the lab's
//! service, and the crates' versions of k8s-openapi need not be equal. Debug builds of the dependencies are
//! slow; most suites want this in `Cargo.toml`:
//!
//! ```toml
//! [profile.dev.package."*"]
//! opt-level = 1
//! ```
//!
//! # The first test
//!
//! The operator is a program of the lab: it gets a [`Life`](crate::Life), whose service it makes its client
//! of. If `reconcile` is private, the test is a child module of it.
//!
//! ```
//! # use std::{sync::Arc, time::Duration};
//! # use futures::StreamExt;
//! # use kube::{Api, Client, CustomResource, CustomResourceExt, ResourceExt};
//! # use kube::{api::{Patch, PatchParams}, runtime::{Controller, controller::Action}};
//! # use schemars::JsonSchema;
//! # use serde::{Deserialize, Serialize};
//! #[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
//! #[kube(group = "kube.rs", version = "v1", kind = "Document", namespaced, status = "DocumentStatus")]
//! struct DocumentSpec { hide: bool }
//! # #[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
//! # struct DocumentStatus { hidden: bool }
//! # async fn reconcile(document: Arc<Document>, client: Arc<Client>) -> Result<Action, kube::Error> {
//! #     let documents: Api<Document> = Api::default_namespaced((*client).clone());
//! #     let status = serde_json::json!({"hidden": document.spec.hide});
//! #     let patch = serde_json::json!({"apiVersion": "kube.rs/v1", "kind": "Document", "status": status});
//! #     let apply = PatchParams::apply("documents").force();
//! #     documents.patch_status(&document.name_any(), &apply, &Patch::Apply(patch)).await?;
//! #     Ok(Action::await_change())
//! # }
//! # fn error_policy(_: Arc<Document>, _: &kube::Error, _: Arc<Client>) -> Action {
//! #     Action::requeue(Duration::from_secs(300))
//! # }
//!
//! /// What `main` calls.
//! async fn run(client: Client) {
//!     Controller::new(Api::<Document>::all(client.clone()), Default::default())
//!         .shutdown_on_signal()
//!         .run(reconcile, error_policy, Arc::new(client))
//!         .for_each(|_| async {}).await;
//! }
//!
//! use k8s_testing::{Faults, Lab, Life};
//!
//! // In a plain #[test]:
//! let report = Lab::new()
//!     .manifest(Document::crd())
//!     .program("documents", |life: Life| run(Client::new(life.service(), "default")))
//!     .seeds(0..50).faults(Faults::all())
//!     .run(async |lab| {
//!         let documents: Api<Document> = Api::namespaced(Client::new(lab.service(), "default"), "default");
//!         let samuel = Document::new("samuel", DocumentSpec { hide: true });
//!         documents.create(&Default::default(), &samuel).await.unwrap();
//!         lab.settle().await;
//!         assert!(documents.get("samuel").await.unwrap().status.is_some_and(|status| status.hidden));
//!     });
//! println!("{}", report.needed_role); // the smallest ClusterRole that does
//! ```
//!
//! # The first fault
//!
//! With an `error_policy` that forgets (`Action::await_change()`), a seed fails. The lab takes away every
//! fault that does not matter, and prints
//!
//! ```text
//! seed 7 fails with 1 of its 3 faults:
//!   TimeoutBefore at patch /apis/kube.rs/v1/namespaces/default/documents/samuel/status #1 of documents
//! ...
//! replay it with .replay("seed:7 | documents patch /apis/kube.rs/v1/namespaces/default/documents/samuel/status #1")
//! keep it as a test with .seeds(7..8)
//!   .fail("patch", "/apis/kube.rs/v1/namespaces/default/documents/samuel/status", Fault::TimeoutBefore)
//! ```
//!
//! [`Lab::fail`](crate::Lab::fail) takes the end of a path, with `*`: `.fail("patch", "/documents/*/status",
//! Fault::TimeoutBefore)`.
//!
//! # What often comes next
//!
//! Your program
//!
//! - makes its client in `main` by `Client::try_default()`: start it as a process, with
//!   [`TestCluster::listen`](crate::TestCluster::listen) and [`Listening::command`](crate::Listening::command),
//!   or with the crate `k8s-envtest`.
//! - retries after minutes (`error_policy`): [`settle`](crate::Running::settle) waits up to ten minutes for
//!   the repetition of a request that a fault hit ([`Lab::retries`](crate::Lab::retries)). For timers of
//!   other kinds set [`Lab::calm`](crate::Lab::calm).
//! - repairs by a requeue what a lost deletion left (`Action::requeue`): [`sleep`](crate::Running::sleep) past
//!   it before you assert. After a relist kube's watchers do not tell of a child that was deleted meanwhile.
//! - ends its process when its first list fails: no faults strike before it;
//!   [`Faults::before_first_list`](crate::Faults::before_first_list) asks for them. A run whose process is
//!   ended is printed with its seed, and fails.
//! - reads `SystemTime`, chrono or jiff: they show the lab's time (feature `wall-clock`, on by default), so
//!   leases expire and ages grow.
//! - has a chart with a ClusterRole: `.role(include_str!("../charts/rbac.yaml"))` runs it under that role
//!   ([`Lab::role`](crate::Lab::role)). The first 403 fails with the missing rule.
//! - makes Deployments, Jobs, dependents: add the [`controllers`](crate::controllers) that it needs, and
//!   nodes.
//! - has types without our traits: [`get_as`](crate::Running::get_as), [`list_as`](crate::Running::list_as),
//!   [`create_any`](crate::Running::create_any), [`Lab::manifest`](crate::Lab::manifest).
//!
//! # Promised, and not
//!
//! - The server answers as an upstream 1.36 API server for what an operator does: server-side apply, status,
//!   finalizers, watches with bookmarks, events, leases, CRD validation with CEL.
//! - A test that asked for faults and had none fails, and so does one whose chosen fault is not reached.
//! - The same seed is the same run, as long as the program takes its time and chance from the lab. A program's
//!   own random numbers (`rand`, the order of a `HashMap`) are not seeded: a run may differ by them.
//! - Threads that a program starts itself have the time of the wall, and a lab does not wait for them.
//! - Admission webhooks, quotas and everything in README's list of limitations are not there.
//!
//! Times on 2 cores, debug build with the profile above: a thousand seeds of an operator like this one, with
//! the garbage collector and all faults, take 20 s.
