//! Forwards queries to other servers, and remembers which of them answer.

#![expect(clippy::disallowed_methods, reason = "names are answered in real time")]

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hickory_proto::op::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::settings::{Forward, Policy, is_below};

/// Timeout per server. Resolvers give up after 5 s, so two servers must fit.
const TIMEOUT: Duration = Duration::from_millis(2000);
/// Pause of a server that is down. It doubles with each further failure.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Parses the name servers of a `resolv.conf`, without `own` (it would be a loop).
pub(super) fn servers(resolv_conf: &str, own: IpAddr) -> Vec<SocketAddr> {
    let addresses = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok())?
    });
    addresses.filter(|a| *a != own && !a.is_unspecified()).take(3).map(|a| SocketAddr::new(a, 53)).collect()
}

#[derive(Debug, Default)]
struct Health {
    /// Failures in a row.
    fails: u32,
    /// The server is asked last until then.
    down_until: Option<Instant>,
}

/// The servers of one directive `forward`.
#[derive(Debug)]
pub(super) struct Group {
    settings: Forward,
    health: Vec<Mutex<Health>>,
    next: AtomicUsize,
}

impl Group {
    pub(super) fn new(settings: Forward) -> Self {
        let health = settings.to.iter().map(|_| Mutex::default()).collect();
        Group { settings, health, next: AtomicUsize::new(0) }
    }

    /// Returns the length of the zone by which this group has a name. `None`: it does not have it.
    pub(super) fn has(&self, name: &str) -> Option<usize> {
        let excepted = self.settings.except.iter().any(|zone| is_below(name, zone));
        (!excepted && is_below(name, &self.settings.from)).then_some(self.settings.from.len())
    }

    /// Returns the servers to ask, those that are down last.
    fn order(&self, first: usize, now: Instant) -> Vec<usize> {
        let count = self.settings.to.len();
        let mut order: Vec<usize> = (0..count).map(|at| (first + at) % count).collect();
        let is_down = |at: &usize| {
            let health = self.health[*at].lock().unwrap_or_else(PoisonError::into_inner);
            health.down_until.is_some_and(|until| now < until)
        };
        order.sort_by_cached_key(is_down);
        order
    }

    fn note(&self, at: usize, answered: bool, now: Instant) {
        let mut health = self.health[at].lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            *health = Health::default();
            return;
        }
        health.fails = health.fails.saturating_add(1);
        let most = self.settings.max_fails;
        if most > 0 && health.fails >= most {
            let pause = PAUSE.saturating_mul(1 << (health.fails - most).min(10)).min(LONGEST_PAUSE);
            health.down_until = Some(now + pause);
        }
    }

    /// Forwards a query with an id of its own and returns the first answer, with the client's id. `None` if
    /// no server answers in time.
    pub(super) async fn ask(&self, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let id = Message::query().metadata.id;
        let mut bytes = question.to_vec();
        let own = <[u8; 2]>::try_from(question.get(..2)?).ok()?;
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        let first = match self.settings.policy {
            Policy::Random => usize::from(Message::query().metadata.id),
            Policy::RoundRobin => self.next.fetch_add(1, Ordering::Relaxed),
            Policy::Sequential => 0,
        };
        for at in self.order(first, Instant::now()).into_iter().take(2) {
            let server = self.settings.to[at];
            let answer = async {
                if tcp || self.settings.force_tcp {
                    over_tcp(server, &bytes).await
                } else {
                    over_udp(server, &bytes).await
                }
            };
            let answer = timeout(TIMEOUT, answer).await.ok().and_then(Result::ok);
            self.note(at, answer.is_some(), Instant::now());
            if let Some(mut answer) = answer {
                answer[..2].copy_from_slice(&own);
                return Some(answer);
            }
        }
        None
    }
}

/// Reports whether a message answers a query: the same id and the same question, whatever its case.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    let end = question_end(question).unwrap_or(question.len());
    let is_reply = answer.len() >= 12 && answer[..2] == question[..2] && answer[2] & 0x80 != 0;
    // A server that cannot read the question may leave it out.
    let without = is_reply && answer[4..6] == [0, 0] && answer[3] & 0x0f != 0;
    let same = |answer: &[u8]| answer.eq_ignore_ascii_case(&question[12..end]);
    is_reply && (without || answer.get(12..end).is_some_and(same))
}

/// Returns the end of a query's first question.
fn question_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match *bytes.get(at)? {
            0 => return (bytes.len() >= at + 5).then_some(at + 5),
            length if length < 64 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], question) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, question) {
        Ok(answer)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer belongs to another question"))
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Query, ResponseCode},
        rr::{Name, RecordType},
    };

    use super::*;

    fn group(servers: &[SocketAddr]) -> Group {
        Group::new(Forward {
            from: "example.org".into(),
            to: servers.to_vec(),
            except: vec!["in.example.org".into()],
            policy: Policy::Sequential,
            force_tcp: false,
            max_fails: 2,
        })
    }

    fn query() -> Vec<u8> {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii("a.example.org.").unwrap(), RecordType::A));
        question.to_vec().unwrap()
    }

    #[test]
    fn own_address_is_no_upstream() {
        let text = "# c\nnameserver 10.43.0.10\nnameserver 192.0.2.53\nsearch a b\nnameserver x\n";
        let own = "10.43.0.10".parse().expect("ip");
        assert_eq!(servers(text, own), ["192.0.2.53:53".parse().expect("address")]);
    }

    #[test]
    fn a_group_has_names_below_its_zone_and_not_the_excepted() {
        let group = group(&[]);
        assert_eq!(group.has("a.example.org"), Some(11));
        assert_eq!(group.has("b.in.example.org"), None);
        assert_eq!(group.has("example.com"), None);
    }

    #[test]
    fn a_server_that_does_not_answer_is_asked_last_for_a_while() {
        let addresses: Vec<SocketAddr> =
            (1..4).map(|last| SocketAddr::from(([192, 0, 2, last], 53))).collect();
        let (group, now) = (group(&addresses), Instant::now());
        group.note(0, false, now);
        assert_eq!(group.order(0, now), [0, 1, 2], "one failure is not enough");
        group.note(0, false, now);
        assert_eq!(group.order(0, now), [1, 2, 0]);
        assert_eq!(group.order(0, now + PAUSE), [0, 1, 2], "it is tried again");
        for _ in 0..200 {
            group.note(0, false, now);
        }
        assert_eq!(group.order(0, now + LONGEST_PAUSE - Duration::from_millis(1)), [1, 2, 0]);
        assert_eq!(group.order(2, now + LONGEST_PAUSE), [2, 0, 1]);
        group.note(0, true, now);
        assert_eq!(group.order(0, now), [0, 1, 2]);
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let question = query();
        let mut answer = question.clone();
        answer[2] |= 0x80;
        assert!(answers(&answer, &question));
        answer[13] = b'A';
        assert!(answers(&answer, &question), "the case does not matter");
        answer[13] = b'b';
        assert!(!answers(&answer, &question));
        assert!(!answers(&question, &question), "a query is no answer");
        assert!(!answers(&answer[..11], &question));
    }

    #[tokio::test]
    async fn the_second_server_answers_for_the_first_and_forged_ids_are_passed_over() {
        let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let alive = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let group = group(&[dead.local_addr().unwrap(), alive.local_addr().unwrap()]);
        let server = async {
            let mut buffer = [0; 512];
            let (length, peer) = alive.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let mut forged = super::super::answer::reply(&asked, ResponseCode::NXDomain);
            forged.metadata.id = asked.metadata.id.wrapping_add(1);
            alive.send_to(&forged.to_vec().unwrap(), peer).await.unwrap();
            let reply = super::super::answer::reply(&asked, ResponseCode::NoError);
            alive.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
        };
        let question = query();
        let (answer, ()) = tokio::join!(group.ask(&question, false), server);
        let answer = Message::from_vec(&answer.unwrap()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert_eq!(answer.metadata.id.to_be_bytes(), question[..2]);
    }
}
