//! On the fakes: which container is meant, and what is said when it cannot be reached.

use nodelet_apiserver::Streams as _;
use nodelet_drivers::runtime::Exit;
use nodelet_drivers::runtime::fake::FakeRuntime;
use nodelet_drivers::sandbox::fake::FakeSandboxes;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const ALL: StdStreams = StdStreams { stdin: true, stdout: true, stderr: true, tty: false };

fn target(status: Value) -> StreamTarget {
    StreamTarget {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        object: json!({"metadata": {"uid": "u1"}, "status": status}),
        container: Some("main".to_owned()),
    }
}

async fn node(script: &str) -> (Arc<NodeStreams>, FakeRuntime) {
    let runtime = FakeRuntime::new();
    let streams = NodeStreams::new();
    streams.reach_with(Arc::new(runtime.clone()), Arc::new(FakeSandboxes::new("/nonexistent")));
    let fixture = nodelet_drivers::runtime::conformance::Fixture::new("image", "/x".parse().expect("valid"));
    let mut spec = fixture.spec("web-main-0", script);
    spec.labels = [(labels::WORKLOAD_UID, "u1"), (labels::CONTAINER, "main"), (labels::SANDBOX, "web")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    runtime.create(&spec).await.expect("can be made");
    runtime.start(&spec.id).await.expect("starts");
    (streams, runtime)
}

#[tokio::test]
async fn a_program_runs_in_the_container_that_is_meant() {
    let (streams, _runtime) = node("sleep 1000").await;
    for status in [json!({}), json!({"containerStatuses": [{"name": "main", "containerID": "nodelet://web-main-0"}]})] {
        let target = target(status);
        streams.check(&target, StreamKind::Exec).await.expect("it runs");
        let command = ["sh", "-c", "cat; exit 4"].map(str::to_owned).to_vec();
        let mut process = streams.exec(&target, command, ALL).await.expect("it starts");
        let mut stdin = process.stdin.take().expect("asked for");
        stdin.write_all(b"hello").await.expect("it reads");
        drop(stdin);
        let mut text = String::new();
        process.stdout.take().expect("asked for").read_to_string(&mut text).await.expect("it prints");
        assert_eq!((text.as_str(), process.exit.await.expect("it ends")), ("hello", 4));
    }
}

#[tokio::test]
async fn a_missing_program_is_told_as_a_shell_does() {
    let (streams, _runtime) = node("sleep 1000").await;
    let mut process =
        streams.exec(&target(json!({})), vec!["/nonexistent".to_owned()], ALL).await.expect("it is told later");
    let mut text = String::new();
    process.stderr.take().expect("asked for").read_to_string(&mut text).await.expect("it is said");
    assert!(text.contains("no such file"), "{text}");
    assert_eq!(process.exit.await.expect("it ends"), 127);
}

#[tokio::test]
async fn what_does_not_run_says_why() {
    let (streams, runtime) = node("sleep 1000").await;
    runtime.crash(&"web-main-0".parse().expect("valid"), 3);
    let refused = streams.check(&target(json!({})), StreamKind::Exec).await.expect_err("it has ended");
    let text = refused.to_string();
    assert!(matches!(refused, StreamError::NotRunning(_)), "{text}");
    assert!(text.contains("with exit code 3") && text.contains("logs web -c main"), "{text}");
    let refused = streams.check(&target(json!({"phase": "Failed"})), StreamKind::PortForward).await;
    assert!(refused.expect_err("nothing runs").to_string().contains("it is Failed"));
    let mut other = target(json!({"containerStatuses": [{"name": "main",
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}));
    other.object["metadata"]["uid"] = "u2".into();
    let text = streams.check(&other, StreamKind::Attach).await.expect_err("never started").to_string();
    assert!(text.contains("ImagePullBackOff no such image"), "{text}");
}

#[test]
fn the_end_is_told_with_its_time() {
    let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
    let container = Container {
        id: "c".parse().expect("valid"),
        labels: Default::default(),
        image: String::new(),
        created_at: at,
        limits: Default::default(),
        state: TaskState::Exited(Exit { code: 137, at, oom_killed: true }),
    };
    let text = not_running(&target(json!({})), "main", Some(&container), at + std::time::Duration::from_secs(9));
    assert!(text.contains("9 s ago, at 2027-01-15T08:00:00Z, with exit code 137, killed for its memory"), "{text}");
}
