//! Levels in virtual time, with upstream's default configuration.

use serde_json::json;

use super::*;
use crate::{
    fair::{metrics::Metrics, schemas::Schema},
    resources::flow_defaults::{LEVELS, SCHEMAS, flow_defaults},
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Returns the default configuration without one level.
fn config(number: u64, without: &str) -> Config {
    let objects = |resource| {
        let all = flow_defaults().filter(|d| d.resource == resource && d.name != without);
        json!(all.map(|d| d.object.clone()).collect::<Vec<_>>())
    };
    let schemas = serde_json::from_value(objects(SCHEMAS)).unwrap();
    let levels = serde_json::from_value(objects(LEVELS)).unwrap();
    Config::new(schemas, levels, number, &Metrics::default())
}

/// Returns the schema that names a level.
fn schema(level: &str) -> Arc<Schema> {
    let object = json!({"metadata": {"name": "test"}, "spec": {"matchingPrecedence": 1,
        "priorityLevelConfiguration": {"name": level}, "distinguisherMethod": {"type": "ByUser"}}});
    let object = serde_json::from_value(object).unwrap();
    Arc::new(Schema::new(&object, "", Metrics::default().of(level, "test")))
}

fn held(level: &str, user: &str, now: Duration) -> Held {
    Held {
        schema: schema(level),
        user: user.into(),
        verb: "get",
        path: "/".into(),
        seats: 1,
        arrived: now,
        started: None,
        idle: Arc::default(),
        waiter: None,
    }
}

const MANY: usize = 1_000_000;

fn levels(total: usize, turn: usize) -> Levels {
    let mut levels = Levels::new(total, turn);
    levels.apply(Duration::ZERO, &config(1, ""));
    levels
}

fn enter(levels: &mut Levels, now: Duration, level: &str, user: &str) -> Entered {
    let hash =
        user.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) + u64::from(byte));
    levels.enter(now, held(level, user, now), || hash, 4, |_| 1).1
}

fn limit(levels: &mut Levels, level: &str) -> usize {
    levels.find(level).unwrap().queues.limit()
}

#[test]
fn seats_follow_demand_and_come_back() {
    let mut levels = levels(600, MANY);
    let sum = |levels: &Levels| -> usize {
        levels.all.iter().filter(|level| !level.is_exempt()).map(|level| level.queues.limit()).sum()
    };
    assert!((595..=610).contains(&sum(&levels)), "{}", sum(&levels));
    let before = limit(&mut levels, "global-default");
    let mut ids = Vec::new();
    for user in 0..400 {
        match enter(&mut levels, ms(0), "global-default", &user.to_string()) {
            Entered::Running(id) | Entered::Waiting(id, _) => ids.push(id),
            Entered::Rejected(_) => {}
        }
    }
    assert_eq!(levels.find("global-default").unwrap().queues.running(), before);
    levels.tick(ms(10_000));
    let after = limit(&mut levels, "global-default");
    assert!(after > 200 && (595..=610).contains(&sum(&levels)), "{before} {after}");
    assert_eq!(levels.find("global-default").unwrap().queues.running(), after, "they start at once");
    for level in &levels.all {
        assert!(level.is_exempt() || level.queues.limit() >= level.bounds.lower, "{}", level.name);
    }
    // Another level needs its own.
    for user in 0..400 {
        enter(&mut levels, ms(10_000), "workload-low", &user.to_string());
    }
    ids.iter().for_each(|id| levels.free(ms(10_001), "global-default", *id));
    levels.tick(ms(20_001));
    assert!(limit(&mut levels, "workload-low") >= 245);
    levels.tick(ms(4_000_000));
    assert!(limit(&mut levels, "global-default") < 70, "the demand is long ago");
}

#[test]
fn a_level_goes_when_its_requests_have_ended() {
    let mut levels = levels(600, MANY);
    let Entered::Running(id) = enter(&mut levels, ms(0), "workload-low", "a") else { panic!() };
    levels.apply(ms(1), &config(2, "workload-low"));
    assert!(levels.find("workload-low").unwrap().quiescing);
    levels.apply(ms(1), &config(1, ""));
    assert!(levels.find("workload-low").unwrap().quiescing, "an older configuration changes nothing");
    levels.free(ms(2), "workload-low", id);
    assert!(levels.find("workload-low").is_none());
    // A request that was classified before the change.
    let (name, entered) = levels.enter(ms(3), held("workload-low", "a", ms(3)), || 1, 4, |_| 1);
    assert!(matches!(entered, Entered::Running(_)));
    assert_eq!(&*name, CATCH_ALL);
    levels.apply(ms(4), &config(3, ""));
    assert!(!levels.find("workload-low").unwrap().quiescing);
}

#[test]
fn a_turn_starts_a_few_requests_of_all_flows_and_levels() {
    let mut levels = levels(600, 2);
    let mut started = Vec::new();
    for i in 0..40 {
        let user = if i < 30 { "noisy".to_owned() } else { format!("quiet-{i}") };
        let level = if i % 2 == 0 { "global-default" } else { "workload-low" };
        if matches!(enter(&mut levels, ms(0), level, &user), Entered::Running(_)) {
            started.push(user);
        }
    }
    assert_eq!(started.len(), 2);
    let exempt = enter(&mut levels, ms(0), "exempt", "admin");
    assert!(matches!(exempt, Entered::Running(_)), "exempt requests do not wait for turns");
    let running = |levels: &Levels| -> Vec<(Arc<str>, u64, Box<str>)> {
        let limited = levels.all.iter().filter(|level| !level.is_exempt());
        let all = limited.flat_map(|level| level.requests.iter().map(move |(id, held)| (level, *id, held)));
        all.filter(|(.., held)| held.started.is_some())
            .map(|(level, id, held)| (level.name.clone(), id, held.user.clone()))
            .collect()
    };
    let mut order = Vec::new();
    let mut now = 1;
    while levels.wants_turn() {
        for (level, id, user) in running(&levels) {
            levels.free(ms(now), &level, id);
            order.push(user);
        }
        levels.begin_turn(ms(now));
        assert_eq!(running(&levels).len(), 2);
        now += 1;
    }
    assert_eq!(now, 1 + 19);
    // Without queues they were the last ten.
    let quiet = order[..24].iter().filter(|user| user.starts_with("quiet")).count();
    assert_eq!(quiet, 10, "{order:?}");
}

#[test]
fn requests_that_wait_for_their_clients_give_their_seats_to_others() {
    let mut levels = levels(30, MANY);
    let seats = limit(&mut levels, "global-default");
    let mut stuck = Vec::new();
    for _ in 0..seats {
        let Entered::Running(id) = enter(&mut levels, ms(0), "global-default", "slow") else { panic!() };
        stuck.push(id);
    }
    let level = levels.find("global-default").unwrap();
    level.requests.values().for_each(|held| held.idle.begin(ms(100)));
    // One whose client sends a byte now and then.
    let drip = level.requests.first_entry().unwrap().get().idle.clone();
    for at in [400, 800] {
        drip.end(ms(at));
        drip.begin(ms(at + 1));
    }
    let Entered::Waiting(_, mut told) = enter(&mut levels, ms(1000), "global-default", "other") else {
        panic!()
    };
    assert!(told.try_recv().is_err());
    levels.tick(ms(1300));
    assert!(told.try_recv().is_ok());
    assert_eq!(levels.find("global-default").unwrap().queues.running(), 1);
    if seats >= 4 {
        let again = enter(&mut levels, ms(1310), "global-default", "slow");
        assert!(matches!(again, Entered::Rejected(_)), "{again:?}");
    }
    stuck.iter().for_each(|id| levels.free(ms(1400), "global-default", *id));
    assert!(levels.stuck.is_empty());
    assert!(matches!(enter(&mut levels, ms(1500), "global-default", "slow"), Entered::Running(_)));
}

#[test]
fn a_flow_that_is_alone_needs_no_turns() {
    let mut levels = levels(600, 1);
    let mut arrive = |now: Duration, user: &str, flow: u64| {
        levels.come_from(now, None, flow);
        let entered = enter(&mut levels, now, "global-default", user);
        if let Entered::Running(id) = &entered {
            levels.free(now, "global-default", *id);
        }
        matches!(entered, Entered::Running(_))
    };
    assert!(arrive(ms(0), "one", 1));
    assert!(!arrive(ms(0), "one", 1), "it is not known yet that it is alone");
    levels.begin_turn(ms(1));
    let mut arrive = |now: Duration, user: &str, flow: u64| {
        levels.come_from(now, None, flow);
        let entered = enter(&mut levels, now, "global-default", user);
        matches!(entered, Entered::Running(_))
    };
    assert!((0..20).all(|_| arrive(ms(1001), "one", 1)));
    assert!(!arrive(ms(1002), "other", 2), "from now on they take turns");
    levels.begin_turn(ms(1003));
    let mut arrive = |now: Duration, user: &str, flow: u64| {
        levels.come_from(now, None, flow);
        matches!(enter(&mut levels, now, "global-default", user), Entered::Running(_))
    };
    assert!(!arrive(ms(1900), "one", 1), "the other may come again");
}
