//! The command line against the real API server, through a unix socket, as users have it.

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;

struct Bench {
    directory: TempDir,
    shutdown: CancellationToken,
    server: Option<tokio::task::JoinHandle<()>>,
    output: Output,
}

impl Bench {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let options = nodelet_apiserver::Options { store: directory.path().join("store.db"), ..Default::default() };
        let server = nodelet_apiserver::Server::open(options, nodelet_crds::crds()).expect("opens");
        let shutdown = CancellationToken::new();
        let (socket, token) = (directory.path().join("api.sock"), shutdown.clone());
        let task = {
            let socket = socket.clone();
            tokio::spawn(async move { server.serve_unix(&socket, token).await.expect("serves") })
        };
        while !socket.exists() {
            tokio::task::yield_now().await;
        }
        Self { directory, shutdown, server: Some(task), output: Output::buffer() }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("makes the directory");
        std::fs::write(&path, text).expect("writes");
        path
    }

    /// What a command printed and how it ended, with this directory's name replaced.
    async fn run(&self, words: &[&str]) -> String {
        let server = format!("--server={}", self.directory.path().join("api.sock").display());
        let arguments = ["nodelet", server.as_str()].into_iter().chain(words.iter().copied());
        let end = match run_with(arguments, &self.output).await {
            Ok(Outcome::Done) => String::new(),
            Ok(Outcome::Failed) => "[exit 1]\n".to_owned(),
            Ok(Outcome::Code(code)) => format!("[exit {code}]\n"),
            Err(error) => {
                format!("error: {}\n[exit {}]\n", chain(error.as_ref()), if error.is::<Usage>() { 2 } else { 1 })
            }
        };
        (self.output.take() + &end).replace(&self.directory.path().display().to_string(), "DIR")
    }

    async fn apply(&self, path: &Path) -> String {
        self.run(&["apply", "-f", path.to_str().expect("text")]).await
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.server.take().expect("runs").await.expect("no panic");
    }
}

const SHOP: &str = "\
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  containers:
  - {name: web, image: registry.example/web:1}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web, namespace: shop}
data: {colour: red}
";

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

/// docs/cli.md is what `--help` says. UPDATE_GENERATED=1 writes it.
#[test]
fn the_page_of_commands_is_up_to_date() {
    /// A command and all below it; `hidden` are the flags that were shown once.
    fn describe(command: &clap::Command, name: &str, hidden: &[String], page: &mut String) {
        let shown = command.clone().mut_args(|arg| {
            let hide = hidden.iter().any(|id| id == arg.get_id().as_str());
            if hide { arg.hide(true) } else { arg }
        });
        let mut shown = shown.bin_name(name).disable_help_flag(true).disable_version_flag(true).term_width(100);
        let help = shown.render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        page.push_str(&format!("\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n").trim_end()));
        let globals = command.get_arguments().filter(|arg| arg.is_global_set()).map(|arg| arg.get_id().to_string());
        let hidden: Vec<String> = hidden.iter().cloned().chain(globals).collect();
        for below in command.get_subcommands() {
            describe(below, &format!("{name} {}", below.get_name()), &hidden, page);
        }
    }
    let mut root = Cli::command();
    root.build();
    let mut page = "# The commands\n\nGenerated from the program; `make crds` updates it. Flags of the first section go with every command.\n\
                    Exit codes: 0 done, 1 failed, 2 usage; `exec` ends with its command's. Results go to stdout, everything else to stderr.\n"
        .to_owned();
    describe(&root, "nodelet", &[], &mut page);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&path, &page).expect("writes");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/cli.md is out of date: UPDATE_GENERATED=1 cargo test -p nodelet the_page_of_commands"
    );
}

#[test]
fn wrong_words_are_usage_errors() {
    for words in [
        &["nodelet"][..],
        &["nodelet", "fly"],
        &["nodelet", "get"],
        &["nodelet", "apply"],
        &["nodelet", "logs", "w", "--since", "soon"],
        &["nodelet", "exec", "w"],
        &["nodelet", "exec", "w", "ls"],
        &["nodelet", "cp", "w:x"],
        &["nodelet", "port-forward", "w"],
        &["nodelet", "port-forward", "w", "80:http"],
    ] {
        let error = Cli::try_parse_from(words).expect_err("refused");
        assert_eq!(error.exit_code(), 2, "{words:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_with_the_command_line() {
    let bench = Bench::start().await;
    let shop = bench.file("shop/all.yaml", SHOP);
    let mut said = String::new();
    let mut run = async |words: &[&str]| {
        let printed = bench.run(words).await;
        said.push_str(&format!("$ nodelet {}\n{printed}\n", words.join(" ")));
    };
    let path = shop.to_str().expect("text").to_owned();
    run(&["apply", "-f", &path]).await;
    run(&["apply", "-f", &path]).await;
    bench.file("shop/all.yaml", &SHOP.replace("red", "green"));
    run(&["diff", "-f", &path]).await;
    run(&["apply", "-f", &path]).await;
    run(&["get", "wl,cm", "-n", "shop", "-o", "name"]).await;
    run(&["get", "workload/web", "-n", "shop", "-o", "name"]).await;
    run(&["get", "wl"]).await;
    run(&["get", "wl", "nothing"]).await;
    run(&["get", "worklods"]).await;
    run(&["stop", "web", "-n", "shop"]).await;
    run(&["why", "wl", "web", "-n", "shop"]).await;
    run(&["describe", "wl"]).await;
    run(&["events"]).await;
    run(&["images"]).await;
    run(&["delete", "wl"]).await;
    run(&["delete", "wl", "nothing"]).await;
    run(&["delete", "-f", &path]).await;
    run(&["delete", "-f", &path]).await;
    bench.stop().await;
    let said = said.replace(&path, "shop.yaml").replace("DIR/shop/all.yaml", "shop.yaml");
    insta::with_settings!({filters => vec![(r"\d+s", "<age>"), (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "<time>"), (r"[0-9a-f]{8}-[0-9a-f-]{27}", "<uid>")]}, {
        insta::assert_snapshot!(said);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_have_lines_and_good_objects_are_applied() {
    let bench = Bench::start().await;
    let text = "\
# A workload with a misspelt field, one of a wrong type, an unknown kind, a nameless one, and a good one.
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: misspelt}
spec:
  containers:
  - name: web
    image: x
    comand: [y]
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: typed}
spec:
  terminationGracePeriodSeconds: soon
  containers: [{name: web, image: x}]
---
apiVersion: nodelet.dev/v1alpha1
kind: Workloaf
metadata: {name: bread}
---
apiVersion: v1
kind: ConfigMap
metadata: {}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: good}
";
    let file = bench.file("bad.yaml", text);
    insta::assert_snapshot!(bench.apply(&file).await);
    let broken = bench.file("broken.yaml", "a: [1\nb: 2\n");
    insta::assert_snapshot!("broken", bench.apply(&broken).await);
    let json: serde_json::Value = serde_json::from_str(
        bench.run(&["apply", "-o", "json", "-f", file.to_str().expect("text")]).await.trim_end_matches("[exit 1]\n"),
    )
    .expect("JSON");
    assert_eq!(json["objects"][0]["action"], "unchanged");
    assert_eq!(json["faults"].as_array().map(Vec::len), Some(4), "{json}");
    bench.stop().await;
}

#[tokio::test]
async fn no_agent_is_told_as_such() {
    let printed = run_with(["nodelet", "--server=/nonexistent/api.sock", "get", "wl"], &Output::buffer()).await;
    let error = printed.expect_err("nobody listens");
    assert_eq!(
        chain(error.as_ref()),
        "no API at unix:///nonexistent/api.sock; is the agent running (`nodelet run`, `systemctl status nodelet`)?: \
         No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn the_store_is_copied_while_in_use_and_put_back_while_not() {
    use std::os::unix::fs::PermissionsExt;

    let bench = Bench::start().await;
    let data = format!("--data-dir={}", bench.directory.path().display());
    let file = bench.directory.path().join("copy.db");
    let name = file.to_str().expect("text").to_owned();
    bench.apply(&bench.file("shop.yaml", SHOP)).await;
    let made = bench.run(&["backup", &name, &data]).await;
    assert!(made.starts_with("DIR/copy.db: ") && made.contains(" objects at version "), "{made}");
    assert_eq!(std::fs::metadata(&file).expect("is there").permissions().mode() & 0o777, 0o600);
    let again = bench.run(&["backup", &name, &data]).await;
    assert_eq!(
        again,
        "error: DIR/copy.db exists: choose another name, or say that it may be replaced (--force)\n[exit 1]\n"
    );
    assert!(bench.run(&["backup", &name, &data, "--force", "-o", "json"]).await.contains("\"objects\": "));

    bench.run(&["delete", "workload", "web", "-n", "shop", "--no-wait"]).await;
    let running = bench.run(&["restore", &name, &data]).await;
    assert!(running.starts_with("error: the agent has to be stopped for a restore"), "{running}");
    let Bench { directory, shutdown, server, output } = bench;
    shutdown.cancel();
    server.expect("runs").await.expect("no panic");
    let bench = Bench { directory, shutdown, server: None, output };
    // The server's threads let go of the store a moment after its last handle.
    let restored = loop {
        let said = bench.run(&["restore", &name, &data]).await;
        if !said.contains("has to be stopped") {
            break said;
        }
        tokio::task::yield_now().await;
    };
    assert!(restored.starts_with("DIR/store.db: ") && restored.contains("going on at version 1000"), "{restored}");
    assert!(restored.contains("the store of before is DIR/store.db.before-restore-"), "{restored}");
    // It works without an agent, too, and what it took is what there is now.
    assert!(bench.run(&["backup", &name, &data, "--force"]).await.contains(" objects at version 1000"));
    let options = nodelet_apiserver::Options { store: bench.directory.path().join("store.db"), ..Default::default() };
    let server = nodelet_apiserver::Server::open(options, nodelet_crds::crds()).expect("opens");
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::namespaced(server.client("shop"), "shop");
    maps.get("web").await.expect("is back");
    let nothing = bench.run(&["backup", &name, "--data-dir=/nowhere", "--force"]).await;
    assert!(nothing.contains("/nowhere/store.db does not exist"), "{nothing}");
    let wrong = bench.file("wrong.db", "not a store");
    drop(server);
    let wrong = bench.run(&["restore", wrong.to_str().expect("text"), &format!("{data}/other")]).await;
    assert!(wrong.contains("wrong.db cannot be restored; the store is as it was"), "{wrong}");
}
