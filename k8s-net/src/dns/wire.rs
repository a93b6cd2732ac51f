//! Messages between the node process and the holder: frames of a length and JSON over a Unix socket.

use std::{io, net::SocketAddr, path::PathBuf};

use k8s_core::meta::ObjectKey;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{feed::Entries, settings::DnsSettings};

/// Longest frame in bytes.
const LONGEST: u32 = 64 << 20;
/// Records in a frame. A name has at most 253 bytes.
const PART: usize = 10_000;

/// The first frame of a holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The program file that it runs.
    pub(super) program: Program,
    pub(super) address: SocketAddr,
    /// Cluster domain.
    pub(super) domain: String,
}

/// Identity of a program file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Program {
    device: u64,
    inode: u64,
    /// Bytes.
    size: u64,
    /// Nanoseconds since 1970.
    modified: i64,
}

impl Program {
    /// Returns the identity of this process's program.
    pub(super) fn own() -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let file = std::fs::metadata("/proc/self/exe")?;
        let modified = file.mtime().saturating_mul(1_000_000_000).saturating_add(file.mtime_nsec());
        Ok(Program { device: file.dev(), inode: file.ino(), size: file.size(), modified })
    }
}

/// A command to the holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Command {
    /// Use these settings.
    Settings(DnsSettings),
    /// The state follows: the records of all services, then [`Command::End`].
    Begin,
    /// Records that belong to the next [`Command::Set`], of a service with many.
    Part(Entries),
    /// Replace the records of a service.
    Set { namespace: String, name: String, entries: Entries },
    /// Answer from the state since [`Command::Begin`].
    End,
    /// Become this program; the sockets stay open.
    Become(PathBuf),
    /// End, and close the sockets.
    Stop,
}

impl Command {
    /// Returns the commands that replace the records of a service.
    pub(super) fn set(key: ObjectKey, mut entries: Entries) -> Vec<Self> {
        let mut commands = Vec::new();
        while entries.len() > PART {
            let rest = entries.split_off(PART);
            commands.push(Command::Part(std::mem::replace(&mut entries, rest)));
        }
        commands.push(Command::Set { namespace: key.namespace, name: key.name, entries });
        commands
    }
}

/// Sends a frame.
pub(super) async fn send(to: &mut (impl AsyncWrite + Unpin), frame: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(frame)?;
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_be_bytes()).await?;
    to.write_all(&bytes).await
}

/// Receives a frame.
pub(super) async fn receive<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = from.read_u32().await?;
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "oversized frame"));
    }
    let mut bytes = Vec::new();
    from.take(length.into()).read_to_end(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_arrive_whole_and_oversized_ones_are_refused() {
        let (mut a, mut b) = tokio::io::duplex(64);
        let entry = ("web.demo.svc.cluster.local".to_owned(), crate::dns::index::Data::Exists);
        let commands = Command::set(ObjectKey::new("demo", "web"), vec![entry; 2 * PART + 1]);
        let lengths = commands.iter().map(|command| match command {
            Command::Part(entries) | Command::Set { entries, .. } => entries.len(),
            other => panic!("{other:?}"),
        });
        assert_eq!(lengths.collect::<Vec<_>>(), [PART, PART, 1]);
        for sent in commands {
            let (out, got) = tokio::join!(send(&mut a, &sent), receive::<Command>(&mut b));
            out.unwrap();
            assert_eq!(got.unwrap(), sent);
        }
        a.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        assert_eq!(receive::<Command>(&mut b).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
