//! Queries over TCP.

#![expect(clippy::disallowed_methods, reason = "names are answered in real time")]

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::state::{State, Step};

/// Time for which a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Longest life of a connection. A client that has more to ask connects again.
const LONGEST: Duration = Duration::from_secs(60);

/// Serves until it is dropped.
pub(super) async fn serve(state: Arc<State>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of file descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Some(permit) = state.connections.enter(peer.ip()) else { continue };
        let state = state.clone();
        connections.spawn(async move {
            let _ = tokio::time::timeout(LONGEST, talk(&state, stream)).await;
            drop(permit);
        });
    }
}

async fn talk(state: &State, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(IDLE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length)];
        tokio::time::timeout(IDLE, stream.read_exact(&mut bytes)).await??;
        let answer = match state.step(&bytes, true, Instant::now()) {
            Step::Done(answer, _) => answer,
            Step::Ask(pending) => pending.answer(true).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let whole = [&length.to_be_bytes()[..], &answer].concat();
        tokio::time::timeout(IDLE, stream.write_all(&whole)).await??;
    }
}
