//! [`Server`]: a running API server on a thread of its own.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use http::Method;
use k8s_core::{api::apimachinery::pkg::apis::meta::v1::APIResourceList, client::Client};
use k8s_testing::{Listening, TestCluster};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::error::{EnvironmentError, ServerError};

/// Longest time until a definition is served.
const SERVED_WITHIN: Duration = Duration::from_secs(10);

/// A running server. Clones are the same server; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct Server {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    url: String,
    kubeconfig: String,
    file: PathBuf,
    stop: CancellationToken,
    /// True when the thread is about to end.
    ended: watch::Receiver<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Its panic was printed; here is nobody to whom it could be told.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Server {
    /// Returns false after [`Server::destroy`].
    #[must_use]
    pub fn exist(&self) -> bool {
        !self.inner.stop.is_cancelled()
    }

    /// Returns the URL of the API: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// Returns the kubeconfig of a cluster administrator, as YAML.
    #[must_use]
    pub fn kubeconfig_yaml(&self) -> &str {
        &self.inner.kubeconfig
    }

    /// Returns the path of a file with the kubeconfig, of mode 0600. It is removed with the server.
    #[must_use]
    pub fn kubeconfig_file(&self) -> &Path {
        &self.inner.file
    }

    /// Returns the kubeconfig as a type of the caller's: `kube::config::Kubeconfig` of any version.
    ///
    /// # Errors
    /// [`ServerError::Kubeconfig`]: the type is not of this shape.
    pub fn kubeconfig_as<T: DeserializeOwned>(&self) -> Result<T, ServerError> {
        serde_saphyr::from_str(&self.inner.kubeconfig).map_err(|e| ServerError::Kubeconfig(e.to_string()))
    }

    /// Returns the command of a program that uses this server: its environment has `KUBECONFIG`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = k8s_envtest::Environment::default().create().await?;
    /// // env!("CARGO_BIN_EXE_controller")
    /// # let program = "true";
    /// let mut controller = server.command(program).spawn()?;
    /// // The test.
    /// controller.kill()?;
    /// controller.wait()?;
    /// # Ok(()) }
    /// ```
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &self.inner.file);
        command
    }

    /// Returns the kubeconfig of a cluster administrator.
    ///
    /// # Errors
    /// [`ServerError::Kubeconfig`].
    #[cfg(feature = "kube")]
    pub fn kubeconfig(&self) -> Result<kube::config::Kubeconfig, ServerError> {
        self.kubeconfig_as()
    }

    /// Returns a client of a cluster administrator, with the namespace `default`. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`ServerError::EnvironmentDestroyed`], [`ServerError::Client`].
    #[cfg(feature = "kube")]
    pub fn client(&self) -> Result<kube::Client, ServerError> {
        if !self.exist() {
            return Err(ServerError::EnvironmentDestroyed);
        }
        let invalid = |e: &dyn std::fmt::Display| ServerError::Kubeconfig(e.to_string());
        let url = self.inner.url.parse().map_err(|e| invalid(&e))?;
        let mut config = kube::Config::new(url);
        let user = self.kubeconfig()?.auth_infos.into_iter().find_map(|user| user.auth_info);
        config.auth_info = user.unwrap_or_default();
        Ok(kube::Client::try_from(config)?)
    }

    /// Ends the server, and waits for that.
    ///
    /// # Errors
    /// [`ServerError::EnvironmentDestroyed`]: it was called before.
    pub async fn destroy(&self) -> Result<(), ServerError> {
        if !self.exist() {
            return Err(ServerError::EnvironmentDestroyed);
        }
        self.inner.stop.cancel();
        // An error means that the thread has ended, too.
        let _ = self.inner.ended.clone().wait_for(|ended| *ended).await;
        Ok(())
    }
}

/// Starts a server with nodes and definitions.
pub(crate) async fn start(nodes: usize, definitions: Vec<Value>) -> Result<Server, EnvironmentError> {
    let stop = CancellationToken::new();
    let (told, ready) = oneshot::channel();
    let (ends, ended) = watch::channel(false);
    let stopped = stop.clone();
    let thread = std::thread::Builder::new().name("envtest".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return drop(told.send(Err(EnvironmentError::StartEnvironment(e.to_string())))),
        };
        runtime.block_on(async {
            match run(nodes, &definitions).await {
                Err(e) => drop(told.send(Err(e))),
                Ok((cluster, listening)) => {
                    let place = (listening.url(), listening.kubeconfig(), listening.kubeconfig_file());
                    if told.send(Ok(place)).is_ok() {
                        stopped.cancelled().await;
                    }
                    drop(listening);
                    cluster.shutdown().await;
                }
            }
        });
        drop(runtime);
        ends.send_replace(true);
    });
    let died = |e: &dyn std::fmt::Display| EnvironmentError::StartEnvironment(e.to_string());
    let thread = Mutex::new(Some(thread.map_err(|e| died(&e))?));
    let (url, kubeconfig, file) = ready.await.map_err(|_| died(&"its thread panicked"))??;
    Ok(Server { inner: Arc::new(Inner { url, kubeconfig, file, stop, ended, thread }) })
}

async fn run(nodes: usize, definitions: &[Value]) -> Result<(TestCluster, Listening), EnvironmentError> {
    let failed = |e: k8s_testing::Error| EnvironmentError::StartEnvironment(e.to_string());
    let builder = if nodes > 0 {
        TestCluster::builder().nodes(nodes)
    } else {
        // As Go's envtest does: nothing makes service accounts.
        TestCluster::bare().without_plugins(["ServiceAccount"])
    };
    let cluster = builder.start().await.map_err(failed)?;
    for definition in definitions {
        cluster
            .apply(definition.to_string())
            .await
            .map_err(|e| EnvironmentError::DecodeCrd(e.to_string()))?;
    }
    let client = cluster.client();
    let served = async {
        for definition in definitions {
            wait_until_served(&client, definition).await;
        }
    };
    let late = |_| EnvironmentError::StartEnvironment("the definitions are not served in time".into());
    tokio::time::timeout(SERVED_WITHIN, served).await.map_err(late)?;
    let listening = cluster.listen().await.map_err(failed)?;
    Ok((cluster, listening))
}

/// Waits until every served version of a definition is in discovery.
async fn wait_until_served(client: &Client, definition: &Value) {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let versions = spec["versions"].as_array().into_iter().flatten();
    for version in versions.filter(|version| version["served"] == true) {
        let path = format!("/apis/{}/{}", text(&spec["group"]), text(&version["name"]));
        let plural = &spec["names"]["plural"];
        loop {
            let list: Result<APIResourceList, _> =
                client.json(Method::GET, &path, "application/json", "").await;
            if list.is_ok_and(|list| list.resources.iter().any(|row| plural == row.name.as_str())) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
