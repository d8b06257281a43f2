//! The source against the real API server, in this process.

use std::path::Path;

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::client::Kinds;

struct Bench {
    _store: TempDir,
    manifests: TempDir,
    client: Client,
    reports: latest::Receiver<Option<Report>>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Bench {
    async fn start() -> Self {
        let manifests = tempfile::tempdir().expect("temporary directory");
        Self::at(manifests).await
    }

    async fn at(manifests: TempDir) -> Self {
        let store = tempfile::tempdir().expect("temporary directory");
        let options = nodelet_apiserver::Options { store: store.path().join("store.db"), ..Default::default() };
        let server = nodelet_apiserver::Server::open(options, nodelet_crds::crds()).expect("opens");
        let client = Client::new(server.client("default"));
        let (report, reports) = latest::channel(None);
        let shutdown = CancellationToken::new();
        let source = DirectorySource {
            directory: manifests.path().join("dir"),
            client: client.clone(),
            audit: Duration::from_secs(3600),
            metrics: Metrics::register(&prometheus::Registry::new()).expect("registers"),
            report,
        };
        let task = tokio::spawn(source.run(shutdown.clone()));
        Self { _store: store, manifests, client, reports, shutdown, task }
    }

    fn directory(&self) -> std::path::PathBuf {
        self.manifests.path().join("dir")
    }

    fn write(&self, name: &str, text: &str) {
        let new = self.directory().join(format!(".{name}.new"));
        std::fs::write(&new, text).expect("writes");
        std::fs::rename(new, self.directory().join(name)).expect("renames");
    }

    async fn report(&self, wanted: impl Fn(&Report) -> bool) -> Report {
        let mut reports = self.reports.clone();
        let waited = reports.wait_for(|report| report.as_ref().is_some_and(&wanted));
        match tokio::time::timeout(Duration::from_secs(10), waited).await {
            Ok(report) => report.expect("the source runs").clone().expect("was waited for"),
            Err(_) => panic!("not in time; last: {:?}", self.reports.borrow()),
        }
    }

    /// Names of the ConfigMaps of namespace `default`.
    async fn config_maps(&self) -> Vec<String> {
        let kinds = Kinds::load(&self.client).await.expect("kinds");
        let kind = kinds.of("v1", "ConfigMap").expect("is served");
        let list = self.client.list(kind, Some("default"), &[]).await.expect("lists");
        let items = list["items"].as_array().expect("has items");
        items.iter().map(|item| item["metadata"]["name"].as_str().expect("has a name").to_owned()).collect()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("no panic").expect("no error");
    }
}

fn map(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: b}}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_followed() {
    let bench = Bench::start().await;
    let missing = bench.report(|_| true).await;
    assert!(missing.unusable.is_some(), "{missing:?}");

    std::fs::create_dir(bench.directory()).expect("makes the directory");
    bench.write("a.yaml", &map("a1"));
    bench.write("b.yaml", &map("b1"));
    bench.report(|report| report.is_ready() && report.objects == 2).await;
    assert_eq!(bench.config_maps().await, ["a1", "b1"]);

    // A directory below, made and filled at once.
    std::fs::create_dir(bench.directory().join("sub")).expect("makes a directory");
    std::fs::write(bench.directory().join("sub/c.yaml"), map("c1")).expect("writes");
    bench.report(|report| report.is_ready() && report.objects == 3).await;

    // Broken: its object stays, others go on.
    bench.write("b.yaml", "kind: [");
    bench.write("a.yaml", &map("a2"));
    let report = bench.report(|report| !report.faults.is_empty()).await;
    assert!(report.faults[0].contains("b.yaml:1:7"), "{report:?}");
    assert_eq!(bench.config_maps().await, ["a2", "b1", "c1"]);

    // Removed: gone.
    std::fs::remove_file(bench.directory().join("b.yaml")).expect("removes");
    bench.report(|report| report.is_ready() && report.objects == 2).await;
    assert_eq!(bench.config_maps().await, ["a2", "c1"]);

    // Suddenly empty, then gone altogether: everything stays, and that is said.
    std::fs::remove_dir_all(bench.directory().join("sub")).expect("removes");
    bench.report(|report| report.is_ready() && report.objects == 1).await;
    std::fs::remove_file(bench.directory().join("a.yaml")).expect("removes");
    let report = bench.report(|report| !report.kept.is_empty()).await;
    assert!(report.kept[0].starts_with("ConfigMap default/a2 is kept: the directory is suddenly empty"), "{report:?}");
    std::fs::remove_dir(bench.directory()).expect("removes");
    bench.report(|report| report.unusable.is_some()).await;
    assert_eq!(bench.config_maps().await, ["a2"]);

    // Back, and empty on purpose.
    std::fs::create_dir(bench.directory()).expect("makes the directory");
    bench.write("none.yaml", "# nothing here\n");
    bench.report(Report::is_ready).await;
    assert_eq!(bench.config_maps().await, [] as [&str; 0]);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_are_named_and_others_converge() {
    let bench = Bench::start().await;
    std::fs::create_dir(bench.directory()).expect("makes the directory");
    bench.write("good.yaml", &map("good"));
    bench.write(
        "bad.yaml",
        "apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: web\n    \
         image: x\n    imagee: y\n---\napiVersion: nodelet.dev/v1alpha1\nkind: Worklod\nmetadata: {name: x}\n---\n\
         apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {name: typed}\nspec:\n  containers: 7\n",
    );
    let report = bench.report(|report| report.faults.len() >= 3).await;
    let faults = report.faults.join("\n");
    let directory = bench.directory().display().to_string();
    let faults = faults.replace(&directory, "DIR");
    for expected in [
        "DIR/bad.yaml:9:5: Workload default/web: spec.containers[0].imagee: ",
        "DIR/bad.yaml:12:1: Worklod x: kind: no kind Worklod in apiVersion \"nodelet.dev/v1alpha1\"; did you mean Workload?",
        "DIR/bad.yaml:19:3: Workload default/typed: spec.containers: ",
    ] {
        assert!(faults.contains(expected), "{expected}\nis not in\n{faults}");
    }
    assert_eq!(bench.config_maps().await, ["good"]);

    // A namespace that comes later.
    bench.write("bad.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: later, namespace: late}\n");
    let report = bench.report(|report| !report.pending.is_empty()).await;
    assert!(report.pending[0].contains("bad.yaml:1:1: ConfigMap late/later: "), "{report:?}");
    bench.write("z.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: late}\n");
    bench.report(Report::is_ready).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mounted_config_map_is_followed() {
    // As the kubelet mounts one: files are links into `..data`, a link that is replaced by a rename.
    let manifests = tempfile::tempdir().expect("temporary directory");
    let directory = manifests.path().join("dir");
    let version = |name: &str, content: &str| {
        std::fs::create_dir_all(directory.join(name)).expect("makes a directory");
        std::fs::write(directory.join(name).join("a.yaml"), content).expect("writes");
    };
    let switch = |name: &str| {
        std::os::unix::fs::symlink(name, directory.join("..data_tmp")).expect("links");
        std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).expect("renames");
    };
    version("..1", &map("one"));
    switch("..1");
    std::os::unix::fs::symlink(Path::new("..data/a.yaml"), directory.join("a.yaml")).expect("links");
    let bench = Bench::at(manifests).await;
    bench.report(|report| report.is_ready() && report.objects == 1).await;
    assert_eq!(bench.config_maps().await, ["one"]);
    let directory = bench.directory();
    std::fs::create_dir_all(directory.join("..2")).expect("makes a directory");
    std::fs::write(directory.join("..2/a.yaml"), format!("{}---\n{}", map("one"), map("two"))).expect("writes");
    std::os::unix::fs::symlink("..2", directory.join("..data_tmp")).expect("links");
    std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).expect("renames");
    bench.report(|report| report.is_ready() && report.objects == 2).await;
    assert_eq!(bench.config_maps().await, ["one", "two"]);
    bench.stop().await;
}
