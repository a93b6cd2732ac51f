//! Waiting for seats, in paused time.

use std::sync::atomic::AtomicUsize;

use http::Method;
use k8s_store::Store;

use super::*;
use crate::request::Query;

fn info() -> RequestInfo {
    RequestInfo::parse(&Method::GET, "/api/v1/namespaces/a/pods/b", &Query::default())
}

fn fair(seats: usize, turn: usize) -> Arc<Fairness> {
    Fairness::with_turn(seats, Duration::from_secs(15), turn, &k8s_metrics::Registry::default())
}

/// Enters the level that there is without any objects: catch-all, which rejects.
async fn enter(fair: &Arc<Fairness>, store: &Store, user: &User) -> Result<Seat, Rejected> {
    let info = info();
    let schema = fair.classify(store, user, &info).unwrap();
    match fair.enter(&schema, user, &info, None, |_| 1) {
        Entry::Done(done) => done,
        Entry::Waits(waiting) => waiting.await,
    }
}

/// Makes catch-all a level with queues.
fn with_queues(fair: &Arc<Fairness>, store: &Store, user: &User) {
    fair.classify(store, user, &info());
    let mut levels = fair.levels();
    let level = levels.find(CATCH_ALL).unwrap();
    let queuing = queues::Queuing { queues: 64, hand: 6, length: 50 };
    level.plan.discipline = queues::Discipline::Queue(queuing);
    level.queues.configure(Duration::ZERO, level.plan.discipline);
}

#[tokio::test(start_paused = true)]
async fn a_seat_is_held_until_it_is_dropped_or_left() {
    let (fair, store) = (fair(2, 1), Store::memory());
    let eve = User::new("eve", &[]);
    let [first, second] =
        [enter(&fair, &store, &eve).await.unwrap(), enter(&fair, &store, &eve).await.unwrap()];
    assert_eq!(enter(&fair, &store, &eve).await.unwrap_err(), Rejected(1));
    assert!(enter(&fair, &store, &User::admin()).await.is_ok(), "exempt");
    second.leave();
    let third = enter(&fair, &store, &eve).await.unwrap();
    drop(second);
    assert!(enter(&fair, &store, &eve).await.is_err(), "a seat is given back once");
    drop((first, third));
    assert!(fair.with_levels(|levels| levels.iter().all(|level| level.queues.is_idle())));
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_rejected_and_who_leaves_is_forgotten() {
    let (fair, store) = (fair(1, 1), Store::memory());
    let eve = User::new("eve", &[]);
    with_queues(&fair, &store, &eve);
    let seat = enter(&fair, &store, &eve).await.unwrap();
    let begun = Instant::now();
    assert_eq!(enter(&fair, &store, &eve).await.unwrap_err(), Rejected(1));
    assert_eq!(begun.elapsed().as_secs(), 15);
    let left = tokio::time::timeout(Duration::from_secs(1), enter(&fair, &store, &eve)).await;
    assert!(left.is_err());
    let counts = |fair: &Fairness| {
        fair.with_levels(|levels| {
            let level = levels.iter().find(|level| *level.name == *CATCH_ALL).unwrap();
            (level.queues.waiting(), level.counts.timed_out, level.counts.cancelled)
        })
    };
    assert_eq!(counts(&fair), (0, 1, 1));
    let waiting = enter(&fair, &store, &eve);
    let end = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        drop(seat);
    };
    assert!(futures::future::join(waiting, end).await.0.is_ok());
}

#[tokio::test]
async fn turns_serve_all_and_end() {
    let (fair, store) = (fair(400, 1), Store::memory());
    let eve = User::new("eve", &[]);
    with_queues(&fair, &store, &eve);
    let most = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..100)
        .map(|i| {
            let (fair, store, most) = (fair.clone(), store.clone(), most.clone());
            let user = if i == 99 { User::new("quiet", &[]) } else { eve.clone() };
            tokio::spawn(async move {
                let seat = enter(&fair, &store, &user).await.unwrap();
                let order = most.fetch_add(1, Ordering::AcqRel);
                drop(seat);
                (user.name, order)
            })
        })
        .collect();
    let mut place = None;
    for task in tasks {
        let (user, order) = task.await.unwrap();
        place = place.or((user == "quiet").then_some(order));
    }
    assert!(place.unwrap() <= 8, "the quiet one came last and was served as number {place:?}");
    tokio::task::yield_now().await;
    assert!(!fair.levels().turning);
}

#[test]
fn endpoints_have_upstreams_columns() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (fair, store) = (fair(600, 8), Store::memory());
        let eve = User::new("eve", &[]);
        let _seat = enter(&fair, &store, &eve).await.unwrap();
        let now = "2026-01-01T00:00:10Z".parse().unwrap();
        let dump = |what, query| fair.dump(what, &Query::parse(query), now);
        let cells = |text: String| -> Vec<Vec<String>> {
            let row = |line: &str| line.split(',').map(|cell| cell.trim().to_owned()).collect();
            text.lines().map(row).collect()
        };
        let levels = cells(dump("dump_priority_levels", "").unwrap());
        assert_eq!(
            levels[0][..5],
            ["PriorityLevelName", "ActiveQueues", "IsIdle", "IsQuiescing", "WaitingRequests"]
        );
        assert_eq!(levels[1], ["catch-all", "0", "false", "false", "0", "1", "1", "0", "0", "0"]);
        assert_eq!(levels[2][..3], ["exempt", "0", "true"]);
        let requests = cells(dump("dump_requests", "includeRequestDetails=1").unwrap());
        assert_eq!(requests[1][..5], ["catch-all", "catch-all", "-1", "-1", "eve"]);
        assert!(requests[1][5].starts_with("2026-01-01T00:00:"), "{requests:?}");
        assert_eq!(
            requests[1][10..],
            ["eve", "get", "/api/v1/namespaces/a/pods/b", "a", "b", "v1", "pods", ""]
        );
        assert_eq!(cells(dump("dump_requests", "").unwrap())[1].len(), 10);
        assert!(dump("dump_queues", "").is_some() && dump("dump_secrets", "").is_none());
    });
}
