use std::fs::File;
use std::io::Write;

use futures::StreamExt;
use serde_json::json;
use tempfile::TempDir;

use super::*;

fn line(number: u32, tag: &str, message: &str) -> String {
    format!("2026-01-01T00:00:{number:02}.000000000Z stdout {tag} {message}\n")
}

fn write(directory: &TempDir, name: &str, text: &str) {
    let mut file =
        std::fs::OpenOptions::new().create(true).append(true).open(directory.path().join(name)).expect("opens");
    file.write_all(text.as_bytes()).expect("writes");
}

fn options(pairs: &[(&str, &str)]) -> LogOptions {
    let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    LogOptions::parse(&pairs).expect("valid")
}

#[tokio::test]
async fn a_log_is_read_as_asked() {
    let directory = tempfile::tempdir().expect("temporary directory");
    write(&directory, "0.log", &line(1, "F", "before"));
    write(&directory, "1.log.1", &(line(2, "F", "two") + &line(3, "P", "thr")));
    write(&directory, "1.log", &(line(3, "F", "ee") + &line(4, "F", "four")));
    for (pairs, expected) in [
        (&[][..], "two\nthree\nfour\n"),
        (&[("previous", "true")], "before\n"),
        (&[("tailLines", "1")], "four\n"),
        (&[("timestamps", "true"), ("sinceTime", "2026-01-01T00:00:04Z")], "2026-01-01T00:00:04.000000000Z four\n"),
    ] {
        let body = open(directory.path().to_owned(), "a", &json!({}), options(pairs), std::future::pending());
        let bytes = axum::body::to_bytes(body.expect("there is a log"), 1 << 20).await.expect("reads");
        assert_eq!(String::from_utf8_lossy(&bytes), expected, "{pairs:?}");
    }
}

#[test]
fn containers_are_named_or_the_first() {
    let object = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
    assert_eq!(container(&object, None), Ok("a".to_owned()));
    assert_eq!(container(&object, Some("i")), Ok("i".to_owned()));
    assert_eq!(
        container(&object, Some("x")),
        Err(Refused("the workload has no container \"x\"; it has a, b, i".to_owned()))
    );
    assert!(LogOptions::parse(&[("tailLines".to_owned(), "-1".to_owned())]).is_err());
}

// The writer is another process in life: it takes its time without asking anybody.
#[allow(clippy::disallowed_methods)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_loses_nothing_over_rotations_and_restarts() {
    const LINES: u32 = 3000;
    let directory = tempfile::tempdir().expect("temporary directory");
    write(&directory, "0.log", &line(0, "F", "0"));
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let object = json!({"spec": {"containers": [{"name": "a"}]}});
    let body = open(directory.path().to_owned(), "a", &object, options(&[("follow", "true")]), async {
        let _ = ended.await;
    });
    let mut body = body.expect("there is a log").into_data_stream();
    let reader = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(chunk) = body.next().await {
            all.extend(chunk.expect("goes on"));
        }
        String::from_utf8(all).expect("text")
    });
    let path = directory.path().to_owned();
    tokio::task::spawn_blocking(move || {
        let mut attempt = 0;
        let mut file = std::fs::OpenOptions::new().append(true).open(path.join("0.log")).expect("opens");
        for number in 1..LINES {
            let name = format!("{attempt}.log");
            file.write_all(line(0, "F", &number.to_string()).as_bytes()).expect("writes");
            if number % 1000 == 0 {
                // A successor: another file from then on.
                std::thread::sleep(Duration::from_millis(50));
                attempt += 1;
                file = File::create(path.join(format!("{attempt}.log"))).expect("creates");
            } else if number % 50 == 0 {
                for old in (1..30).rev() {
                    let _ =
                        std::fs::rename(path.join(format!("{name}.{old}")), path.join(format!("{name}.{}", old + 1)));
                }
                std::fs::rename(path.join(&name), path.join(format!("{name}.1"))).expect("renames");
                file = File::create(path.join(&name)).expect("creates");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    })
    .await
    .expect("no panic");
    end.send(()).expect("is followed");
    let all = reader.await.expect("no panic");
    let numbers: Vec<u32> = all.lines().map(|line| line.parse().expect("a number")).collect();
    let lost: Vec<u32> = (0..LINES).filter(|number| !numbers.contains(number)).collect();
    assert_eq!((numbers.len(), lost), (LINES as usize, Vec::new()));
    assert!(numbers.is_sorted());
}

#[tokio::test]
async fn no_log_yet_says_what_the_container_waits_for() {
    let object = json!({"status": {"containerStatuses": [
        {"name": "a", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}},
    ]}});
    let refused = open("/nonexistent".into(), "a", &object, options(&[]), std::future::pending()).map(drop);
    assert_eq!(refused, Err(Refused("container \"a\": no log yet; it waits: ImagePullBackOff no such tag".to_owned())));
}
