//! Queries over UDP, received in batches.

#![expect(clippy::disallowed_methods, reason = "names are answered in real time")]

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsRawFd,
    sync::Arc,
    time::Instant,
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg};
use tokio::{io::Interest, net::UdpSocket, task::JoinSet};
use tracing::debug;

use super::{
    packets::Packets,
    state::{State, Step},
};

/// Queries received by one system call.
const BATCH: usize = 32;
/// Longest query in bytes; the rest of a longer one is lost, so that it cannot be read.
const LONGEST: usize = 2048;

/// Serves until it is dropped.
pub(super) async fn serve(state: Arc<State>, socket: Arc<UdpSocket>) {
    let mut waiting = JoinSet::new();
    let mut buffers = vec![[0; LONGEST]; BATCH];
    let mut received = Vec::with_capacity(BATCH);
    let (mut packets, mut reply) = (Packets::default(), Vec::new());
    loop {
        while waiting.try_join_next().is_some() {}
        if socket.readable().await.is_err() {
            // Only a runtime that ends says so.
            return;
        }
        let got = socket.try_io(Interest::READABLE, || receive(&socket, &mut buffers, &mut received));
        if let Err(error) = got {
            if error.kind() != io::ErrorKind::WouldBlock {
                debug!(%error, "receive");
            }
            continue;
        }
        let now = Instant::now();
        for ((length, peer), buffer) in received.drain(..).zip(&buffers) {
            let query = &buffer[..length];
            let version = state.version();
            if packets.get(query, version, now, &mut reply) {
                // Without room in the socket the answer is lost, and the client asks again.
                let _ = socket.try_send_to(&reply, peer);
                continue;
            }
            match state.step(query, false, now) {
                Step::Done(Some(answer), reuse) => {
                    packets.put(query, version, &answer, reuse);
                    let _ = socket.try_send_to(&answer, peer);
                }
                Step::Done(None, _) => {}
                Step::Ask(pending) => {
                    // Over the limit: the query is dropped, and the client asks again.
                    let Some(permit) = state.forwarded.enter(peer.ip()) else { continue };
                    let socket = socket.clone();
                    waiting.spawn(async move {
                        if let Some(answer) = pending.answer(false).await {
                            let _ = socket.send_to(&answer, peer).await;
                        }
                        drop(permit);
                    });
                }
            }
        }
    }
}

/// Receives the queries that are there: lengths and peers, in the order of `buffers`.
fn receive(
    socket: &UdpSocket,
    buffers: &mut [[u8; LONGEST]],
    received: &mut Vec<(usize, SocketAddr)>,
) -> io::Result<()> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(buffers.len(), None);
    let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
    let flags = MsgFlags::MSG_DONTWAIT;
    let messages = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None)?;
    received.extend(messages.map(|message| {
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        (message.bytes, message.address.and_then(address).unwrap_or(nowhere))
    }));
    Ok(())
}

fn address(peer: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || peer.as_sockaddr_in().map(|peer| SocketAddr::V4((*peer).into()));
    let v6 = || peer.as_sockaddr_in6().map(|peer| SocketAddr::V6((*peer).into()));
    v4().or_else(v6)
}
