//! Workloads that run to an end, or are given up.

use super::*;

#[test]
fn what_ends_stays_so_and_gives_back_what_it_held() {
    check(&[
        (
            "policy Never and ended",
            |d, o| {
                d.restart = RestartPolicy::Never;
                o.containers[0].container.state = exited(1, 0);
            },
            &[],
        ),
        (
            "policy Never and ended, and the status tells: gives back what it held",
            |d, o| {
                d.restart = RestartPolicy::Never;
                o.containers[0].container.state = exited(1, 0);
                let remembered = Remembered { restarts: 0, exit_code: Some(1), next_attempt: 1 };
                o.remembered.insert("main".into(), remembered);
            },
            &["remove web-1-main-0", "teardown web-1"],
        ),
        (
            "policy OnFailure and ended well",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                o.containers[0].container.state = exited(0, 0);
            },
            &[],
        ),
        (
            "policy OnFailure and failed",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                o.containers[0].container.state = exited(2, 0);
            },
            &["start main 1 r1 f1", "remove web-1-main-0"],
        ),
        (
            "failed as often as it may",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                d.batch.backoff_limit = Some(2);
                o.containers[0].failures = 1;
                o.containers[0].container.state = exited(2, 15);
            },
            &["start main 1 r1 f2", "remove web-1-main-0"],
        ),
        (
            "failed more often than it may: told first",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                d.batch.backoff_limit = Some(2);
                o.containers[0].failures = 2;
                o.containers[0].container.state = exited(2, 15);
            },
            &[],
        ),
        (
            "failed more often than it may, told",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                o.containers[0].container.state = exited(2, 15);
                o.given_up = Some(GivenUp { reason: "Test", message: String::new() });
            },
            &["remove web-1-main-0", "teardown web-1"],
        ),
        (
            "given up, and nothing is left",
            |_, o| {
                *o = Observed::default();
                o.given_up = Some(GivenUp { reason: "Test", message: String::new() });
            },
            &[],
        ),
        (
            "its deadline is near",
            |d, o| {
                d.batch.deadline = Some(Duration::from_secs(20));
                o.started_at = Some(now() - Duration::from_secs(19));
            },
            &[],
        ),
        (
            "its deadline is over",
            |d, o| {
                d.batch.deadline = Some(Duration::from_secs(20));
                o.started_at = Some(now() - Duration::from_secs(20));
            },
            &["ask web-1-main-0 GivenUp"],
        ),
        (
            "its deadline is over, and it ended well before",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                d.batch.deadline = Some(Duration::from_secs(20));
                o.started_at = Some(now() - Duration::from_secs(30));
                o.containers[0].container.state = exited(0, 15);
            },
            &[],
        ),
        (
            "ended well, and its records are gone since",
            |d, o| {
                d.restart = RestartPolicy::Never;
                *o = Observed::default();
                let remembered = Remembered { restarts: 0, exit_code: Some(0), next_attempt: 1 };
                o.remembered.insert("main".into(), remembered);
            },
            &[],
        ),
    ]);
}
