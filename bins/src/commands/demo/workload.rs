//! The demo's container programs: a small web server that reports its environment, and a job that counts
//! down.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};

use crate::commands::exit::Failure;

/// Mount point of the demo's ConfigMap and Secret.
const FILES: &str = "/etc/demo";
/// Time that the server keeps serving after SIGTERM, for requests already routed to it.
const LINGER: Duration = Duration::from_millis(1500);

/// Programs of the demo's containers.
#[derive(Debug, clap::Args)]
pub(crate) struct Workload {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Serve on a port.
    Web {
        /// Port to listen on.
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Count down and exit.
    Countdown,
}

impl Workload {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self.what {
            What::Web { port } => web(port).await,
            What::Countdown => {
                for n in (1..=3).rev() {
                    println!("{n}");
                }
                println!("lift-off");
                Ok(())
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the task ends with its connection")]
async fn web(port: u16) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::because("signals"))?;
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port)))
        .await
        .map_err(Failure::because("listen"))?;
    println!("serving on port {port}");
    let serve = async {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                // Errors of a client's connection are ignored.
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    };
    let stop = async {
        terminate.recv().await;
        println!("told to stop");
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        () = serve => {}
        () = stop => {}
    }
    Ok(())
}

async fn answer(request: Request<Incoming>) -> Result<Response<String>, std::convert::Infallible> {
    let body = match (request.uri().path(), request.uri().query()) {
        ("/healthz", _) => "ok".to_owned(),
        ("/fetch", Some(target)) => fetch(target).await.unwrap_or_else(|e| format!("error: {e}")),
        _ => about().to_string(),
    };
    Ok(Response::new(body))
}

/// Returns version, pod name, environment and mounted files.
fn about() -> serde_json::Value {
    let env = |name: &str| std::env::var(name).unwrap_or_default();
    let mut files = BTreeMap::new();
    for directory in ["config", "secret"] {
        let entries = std::fs::read_dir(format!("{FILES}/{directory}")).into_iter().flatten().flatten();
        for entry in entries.filter(|e| !e.file_name().to_string_lossy().starts_with("..")) {
            if let Ok(text) = std::fs::read_to_string(entry.path()) {
                files.insert(format!("{directory}/{}", entry.file_name().to_string_lossy()), text);
            }
        }
    }
    json!({
        "version": env("DEMO_VERSION"), "pod": env("POD_NAME"),
        "env": {"GREETING": env("GREETING"), "PASSWORD": env("PASSWORD")}, "files": files,
    })
}

/// Sends a GET request to `host:port` from inside the pod; the cluster DNS resolves the name.
pub(crate) async fn fetch(target: &str) -> std::io::Result<String> {
    get(target, "/").await
}

/// Performs one HTTP/1.1 exchange on a new connection.
pub(crate) async fn get(target: &str, path: &str) -> std::io::Result<String> {
    get_as(target, target.split(':').next().unwrap_or(target), path).await
}

/// As [`get`], for a host of this name.
pub(crate) async fn get_as(target: &str, host: &str, path: &str) -> std::io::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(target).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
            _ => Err(std::io::Error::other(format!("unexpected answer {answer:?}"))),
        }
    };
    tokio::time::timeout(Duration::from_secs(5), exchange)
        .await
        .unwrap_or_else(|_| Err(std::io::Error::other("no answer within 5 s")))
}
