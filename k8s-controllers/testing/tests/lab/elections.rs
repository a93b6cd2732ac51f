//! Leader election, with our client and with a `kube::Client`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use http::{Request, Response};
use k8s_controllers::leader::{Candidate, LeaseError, Leases};
use k8s_core::{
    api::api::{coordination::v1::Lease, core::v1::ConfigMap},
    client::{Body, BoxError, Client, Transport},
};
use k8s_testing::Lab;
use kube::api::PostParams;
use tokio_util::sync::CancellationToken;

use crate::counters::original;

/// The three calls of `Leases`, over a `kube::Client`.
struct KubeLeases(kube::Api<Lease>);

fn failed(error: kube::Error) -> LeaseError {
    match &error {
        kube::Error::Api(status) if status.code == 409 => LeaseError::Race(error.into()),
        _ => LeaseError::Other(error.into()),
    }
}

impl Leases for KubeLeases {
    async fn get(&self, name: &str) -> Result<Option<Lease>, LeaseError> {
        self.0.get_opt(name).await.map_err(failed)
    }
    async fn create(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        self.0.create(&PostParams::default(), lease).await.map_err(failed)
    }
    async fn replace(&self, name: &str, lease: &Lease) -> Result<Lease, LeaseError> {
        self.0.replace(name, &PostParams::default(), lease).await.map_err(failed)
    }
}

#[test]
fn of_several_on_kube_clients_one_leads() {
    Lab::new().run(async |lab| {
        let (leading, terms) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut stops = Vec::new();
        for id in ["a", "b", "c"] {
            let leases =
                KubeLeases(kube::Api::default_namespaced(kube::Client::new(lab.service(), "default")));
            let candidate = Candidate::over(leases, lab.clock().clone(), "default", "l", id);
            let stop = CancellationToken::new();
            stops.push((id, stop.clone()));
            let (leading, terms) = (leading.clone(), terms.clone());
            tokio::spawn(candidate.run(stop, move |stop| async move {
                assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0);
                terms.fetch_add(1, Ordering::SeqCst);
                stop.cancelled().await;
                leading.fetch_sub(1, Ordering::SeqCst);
            }));
        }
        for term in 1..=3 {
            lab.sleep(Duration::from_secs(30)).await;
            assert_eq!((leading.load(Ordering::SeqCst), terms.load(Ordering::SeqCst)), (1, term));
            let holder = lab.get::<Lease>("l").await.spec.unwrap().holder_identity.unwrap();
            stops.iter().find(|(id, _)| *id == holder).unwrap().1.cancel();
        }
    });
}

/// A client whose connection can be cut.
struct Cut(Client, Arc<AtomicBool>);

impl Transport for Cut {
    fn call(
        &self,
        request: Request<Body>,
    ) -> futures::future::BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let (client, cut) = (self.0.clone(), self.1.clone());
        async move {
            if cut.load(Ordering::SeqCst) {
                return std::future::pending().await;
            }
            Ok(client.send(request).await?)
        }
        .boxed()
    }
}

#[test]
fn a_lost_lease_stops_the_work_before_another_begins() {
    Lab::new().run(async |lab| {
        let cut = Arc::new(AtomicBool::new(false));
        let working = Arc::new(AtomicUsize::new(0));
        // Work that ignores its shutdown signal: it goes on until it is dropped.
        struct Works(Arc<AtomicUsize>);
        impl Drop for Works {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let client = Client::new(Cut(lab.client(), cut.clone()));
        let candidate = Candidate::new(&client, lab.clock().clone(), "default", "l", "deaf");
        let fence = candidate.fence();
        // The work's client is separate from the lease's, so that the network can be cut between them.
        let fenced = fence.client(&lab.client());
        let deaf = tokio::spawn(candidate.run(CancellationToken::new(), {
            let working = working.clone();
            move |_| async move {
                working.fetch_add(1, Ordering::SeqCst);
                let _works = Works(working);
                std::future::pending::<()>().await;
            }
        }));
        lab.sleep(Duration::from_secs(5)).await;
        assert!(fence.holds() && working.load(Ordering::SeqCst) == 1);
        fenced.namespaced::<ConfigMap>("default").create(&original("while-leading", "x")).await.unwrap();
        cut.store(true, Ordering::SeqCst);
        let other = Candidate::new(&lab.client(), lab.clock().clone(), "default", "l", "other");
        let (before, at_begin) = (working.clone(), fence.clone());
        let begun = tokio::spawn(other.run(CancellationToken::new(), move |_| async move {
            assert_eq!(before.load(Ordering::SeqCst), 0, "the first one still works");
            assert!(!at_begin.holds());
        }));
        tokio::time::timeout(Duration::from_secs(60), begun).await.unwrap().unwrap().unwrap();
        assert!(deaf.await.unwrap().is_err(), "it knows that it lost");
        let late = fenced.namespaced::<ConfigMap>("default").create(&original("too-late", "x")).await;
        assert!(late.unwrap_err().to_string().contains("the lease that permits it is lost"));
        assert!(lab.find::<ConfigMap>("too-late").await.is_none());
        fenced.namespaced::<ConfigMap>("default").get("while-leading").await.unwrap();
    });
}
