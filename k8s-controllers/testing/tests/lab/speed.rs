//! Timings. Figures are printed; assertions leave a wide margin for a busy machine.

use std::time::{Duration, Instant};

use k8s_core::api::api::{
    batch::v1::{CronJob, Job},
    core::v1::ConfigMap,
};
use k8s_testing::{
    Lab, Script,
    controllers::{cron_job, deployment, job, replica_set},
};

use crate::counters::original;

#[test]
fn a_cold_start_is_short_and_a_warm_one_shorter() {
    for which in ["first", "second", "third"] {
        let begun = Instant::now();
        Lab::new().controllers([deployment(), replica_set()]).nodes(3).run(async |lab| {
            assert!(lab.list::<ConfigMap>().await.is_empty());
        });
        println!("{which} lab with three nodes: {:?}", begun.elapsed());
    }
    let begun = Instant::now();
    Lab::new().controllers(k8s_testing::controllers::all()).nodes(3).run(async |_| {});
    println!("with all controllers: {:?}", begun.elapsed());
}

#[test]
fn two_hundred_at_once() {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for i in 0..200 {
            scope.spawn(move || {
                Lab::new().controllers([deployment(), replica_set()]).nodes(1).threads(1).run(async |lab| {
                    lab.create(&original(&format!("only-{i}"), "x")).await;
                    lab.sleep(Duration::from_secs(60)).await;
                    assert_eq!(lab.list::<ConfigMap>().await.len(), 1);
                });
            });
        }
    });
    println!("two hundred labs at once: {:?}", begun.elapsed());
}

const HOURLY: &str = "
apiVersion: batch/v1
kind: CronJob
metadata: {name: hourly}
spec:
  schedule: '0 * * * *'
  jobTemplate:
    spec:
      template:
        spec: {restartPolicy: Never, containers: [{name: c, image: i}]}
";

#[test]
fn a_year_of_an_hourly_cron_job() {
    let begun = Instant::now();
    Lab::new()
        .controllers([cron_job(), job()])
        .nodes(1)
        .pods(|_| Script::exits(Duration::from_secs(60), 0))
        .run(async |lab| {
            lab.apply(HOURLY).await;
            let days = if cfg!(debug_assertions) { 7 } else { 365 };
            lab.sleep(Duration::from_secs(days * 86_400 + 1800)).await;
            let writes = lab.writes_since_settled();
            let cron: CronJob = lab.get("hourly").await;
            assert!(cron.status.unwrap().last_successful_time.is_some());
            assert_eq!(lab.list::<Job>().await.len(), 3, "as the history limit says");
            println!("{days} days, {} jobs, {writes} writes: {:?}", days * 24, begun.elapsed());
        });
}
