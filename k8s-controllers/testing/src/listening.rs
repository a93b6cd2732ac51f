//! [`Listening`]: a test cluster on a loopback port, for programs that make their own client.

#![expect(clippy::disallowed_methods, reason = "the listener's task ends with its value")]

use std::{
    collections::HashMap,
    ffi::OsStr,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use k8s_apiserver::{
    ApiServer, User,
    listen::serve_plain,
    stages::{Authenticate, Credentials},
};
use k8s_core::{client::Kubeconfig, status::ApiStatus};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::Error;

/// Bytes of a token and of a directory's name.
const SECRET: usize = 16;

/// Bearer tokens of a cluster's users, asked by its API server.
#[derive(Clone, Default)]
pub(crate) struct Tokens(Arc<Mutex<HashMap<String, User>>>);

impl Tokens {
    /// Creates a token of a user.
    fn of(&self, user: User) -> std::io::Result<String> {
        let token = secret()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), user);
        Ok(token)
    }
}

#[async_trait]
impl Authenticate for Tokens {
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, ApiStatus> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(credentials.bearer_token().and_then(|token| all.get(token)).cloned())
    }
}

/// Returns an unpredictable text. Not from the seeded generator: other users of the machine could repeat it.
fn secret() -> std::io::Result<String> {
    let mut bytes = [0; SECRET];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A test cluster's API server on a loopback port, as plain HTTP with bearer tokens. It ends when this is
/// dropped, or with its cluster.
///
/// # Examples
/// ```
/// use k8s_testing::TestCluster;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = TestCluster::bare().start().await?;
/// let listening = cluster.listen().await?;
/// // A program that calls `Client::try_default()` in its `main`.
/// # let program = "env";
/// let output = listening.command(program).output()?;
/// # let output = String::from_utf8(output.stdout)?;
/// # assert!(output.contains(&format!("KUBECONFIG={}", listening.kubeconfig_file().display())));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Listening {
    address: SocketAddr,
    tokens: Tokens,
    kubeconfig: Kubeconfig,
    /// Directory of the kubeconfig, which is removed with this.
    directory: PathBuf,
    _stop: DropGuard,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Listening {
    pub(crate) async fn start(
        server: ApiServer,
        tokens: Tokens,
        stop: &CancellationToken,
    ) -> Result<Self, Error> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(Error::Listen)?;
        let address = listener.local_addr().map_err(Error::Listen)?;
        let token = tokens.of(User::admin()).map_err(Error::Listen)?;
        let kubeconfig = kubeconfig(address, &token);
        let directory = write(&kubeconfig).map_err(Error::Listen)?;
        let stop = stop.child_token();
        tokio::spawn(serve_plain(server, listener, stop.clone()));
        Ok(Listening { address, tokens, kubeconfig, directory, _stop: stop.drop_guard() })
    }

    /// Returns the URL of the API: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the kubeconfig of a cluster administrator, as YAML. With kube-rs of any version:
    /// `kube::config::Kubeconfig::from_yaml(&listening.kubeconfig())`.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig.to_yaml()
    }

    /// Returns the kubeconfig of a user, as YAML.
    ///
    /// # Errors
    /// [`Error::Listen`]: no token can be created.
    pub fn kubeconfig_of(&self, user: User) -> Result<String, Error> {
        let token = self.tokens.of(user).map_err(Error::Listen)?;
        Ok(kubeconfig(self.address, &token).to_yaml())
    }

    /// Returns the path of a file with [`Listening::kubeconfig`], of mode 0600. It is removed when this is
    /// dropped.
    #[must_use]
    pub fn kubeconfig_file(&self) -> PathBuf {
        file_in(&self.directory)
    }

    /// Returns the command of a program that uses this cluster: its environment has `KUBECONFIG`.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", self.kubeconfig_file());
        command
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Nobody can be told of a failure here; the file's token is of no use without the server.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn kubeconfig(address: SocketAddr, token: &str) -> Kubeconfig {
    Kubeconfig::with_token("test", &format!("http://{address}"), token)
}

fn file_in(directory: &Path) -> PathBuf {
    directory.join("kubeconfig")
}

/// Writes a kubeconfig into a new directory that no other user can read; returns the directory.
fn write(kubeconfig: &Kubeconfig) -> std::io::Result<PathBuf> {
    let directory = std::env::temp_dir().join(format!("k8s-testing-{}", secret()?));
    std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
    let file = file_in(&directory);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    file.write_all(kubeconfig.to_yaml().as_bytes())?;
    Ok(directory)
}
