//! What the images hold.
//!
//! | repository | what it does |
//! | --- | --- |
//! | `shop/nginx`, `shop/redis`, `shop/postgres` | the Debian programs, configured to run in the foreground |
//! | `shop/busybox` | a shell and small tools, the base of all the others |
//! | `test/counter` | writes 1, 2, 3, … to its log, a line each five milliseconds |
//! | `test/crashes` | exits with 3 after a moment |
//! | `test/ignores-term` | ends on SIGKILL only |
//! | `test/floods` | writes to its log as fast as it can |
//! | `test/checked` | sleeps; its HEALTHCHECK asks for `/tmp/well` each second; its VOLUME `/kept` holds a file |
//! | `test/eats-memory` | takes memory until it is killed |
//! | `test/realtime` | the base with `chrt` |

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Image, LayerBuilder, digest, store};

/// The user that redis and postgres run as, and whose their data directories are.
pub const SERVICE_USER: u32 = 70;

/// Where the finished test images are.
#[derive(Clone, Debug)]
pub struct Built {
    /// Storage directory for a docker-registry that serves all of them, tag `1`.
    pub registry: PathBuf,
    /// `shop/busybox` as an OCI archive.
    pub oci_archive: PathBuf,
    /// `shop/busybox` as a docker archive.
    pub docker_archive: PathBuf,
    /// `shop/busybox` as an OCI layout directory.
    pub oci_layout: PathBuf,
}

/// The reference that the archives carry.
pub const ARCHIVED: &str = "images.example/busybox:1";

impl Built {
    fn under(root: &Path) -> Built {
        Built {
            registry: root.join("registry"),
            oci_archive: root.join("busybox-oci.tar"),
            docker_archive: root.join("busybox-docker.tar"),
            oci_layout: root.join("busybox-layout"),
        }
    }
}

/// Builds the test images below `cache`, unless they are there for these package versions and this code.
pub fn build(cache: &Path) -> Result<Built> {
    let root = cache.join(key()?);
    let built = Built::under(&root);
    if root.exists() {
        return Ok(built);
    }
    fs::create_dir_all(cache)?;
    let scratch = tempfile::Builder::new().prefix("new-").tempdir_in(cache)?;
    write_all(&Built::under(scratch.path()))?;
    // Whole or not at all: an interrupted build must not look finished. Someone else may have been faster.
    let made = scratch.keep();
    if fs::rename(&made, &root).is_err() {
        ensure!(root.exists(), "could not put the images into {}", root.display());
        fs::remove_dir_all(made)?;
    }
    Ok(built)
}

fn write_all(built: &Built) -> Result<()> {
    let base = busybox()?;
    let push = |repository: &str, image: &Image| store::registry(&built.registry, repository, "1", image);
    push("shop/busybox", &base)?;
    push("shop/nginx", &nginx(&base)?)?;
    push("shop/redis", &redis(&base)?)?;
    push("shop/postgres", &postgres(&base)?)?;
    for name in ["counter", "crashes", "ignores-term", "floods", "eats-memory"] {
        push(&format!("test/{name}"), &misbehaving(&base, name)?)?;
    }
    push("test/checked", &checked(&base)?)?;
    push("test/realtime", &realtime(&base)?)?;
    store::oci_archive(&built.oci_archive, ARCHIVED, &base)?;
    store::docker_archive(&built.docker_archive, ARCHIVED, &base)?;
    store::oci_layout(&built.oci_layout, ARCHIVED, &base)
}

/// The agent as an image: the two programs, what they link to, certificate authorities, and nothing else.
pub fn agent(nodelet: &Path, logger: &Path) -> Result<Image> {
    let mut layer = skeleton()?;
    layer.program(nodelet, Path::new("/usr/bin/nodelet"))?;
    layer.program(logger, Path::new("/usr/bin/nodelet-logger"))?;
    // Registries are checked against these.
    layer.copy(Path::new("/etc/ssl/certs/ca-certificates.crt"))?;
    let config = json!({"Entrypoint": ["/usr/bin/nodelet"], "Cmd": ["run"], "Env": ["PATH=/usr/bin:/usr/sbin"]});
    Image::on(&Image { layers: Vec::new(), config: json!({}) }, layer, config)
}

/// Directories and account files that every image needs.
fn skeleton() -> Result<LayerBuilder> {
    let mut layer = LayerBuilder::default();
    for directory in
        ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "dev", "proc", "sys", "run", "var/lib", "root"]
    {
        layer.dir(directory, 0o755, 0)?;
    }
    for top in ["bin", "sbin", "lib", "lib64"] {
        layer.link(top, &format!("usr/{top}"))?;
    }
    layer.dir("tmp", 0o1777, 0)?;
    layer.link("var/run", "/run")?;
    let accounts = format!("root:x:0:0:root:/root:/bin/sh\nservice:x:{SERVICE_USER}:{SERVICE_USER}::/tmp:/bin/sh\n");
    layer.file("etc/passwd", accounts.as_bytes(), 0o644)?;
    layer.file("etc/group", format!("root:x:0:\nservice:x:{SERVICE_USER}:\n").as_bytes(), 0o644)?;
    layer.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n", 0o644)?;
    Ok(layer)
}

fn busybox() -> Result<Image> {
    let mut layer = skeleton()?;
    layer.program(&program("busybox")?, Path::new("/usr/bin/busybox"))?;
    let applets = Command::new(program("busybox")?).arg("--list").output()?;
    for applet in String::from_utf8(applets.stdout)?.lines().filter(|applet| *applet != "busybox") {
        layer.link(&format!("usr/bin/{applet}"), "busybox")?;
    }
    let config = json!({"Cmd": ["sh"], "Env": ["PATH=/usr/bin:/usr/sbin"]});
    Image::on(&Image { layers: Vec::new(), config: json!({}) }, layer, config)
}

fn nginx(base: &Image) -> Result<Image> {
    let mut layer = LayerBuilder::default();
    layer.program(&program("nginx")?, Path::new("/usr/sbin/nginx"))?;
    layer.copy(Path::new("/etc/nginx/mime.types"))?;
    layer.file("etc/nginx/nginx.conf", &asset("nginx/nginx.conf")?, 0o644)?;
    layer.dir("etc/nginx/conf.d", 0o755, 0)?;
    layer.dir("var/lib/nginx", 0o755, 0)?;
    layer.file("usr/share/nginx/html/index.html", b"<h1>nginx</h1>\n", 0o644)?;
    let config = json!({"Cmd": ["nginx"], "Env": ["PATH=/usr/bin:/usr/sbin"], "ExposedPorts": {"80/tcp": {}},
                        "StopSignal": "SIGQUIT"});
    Image::on(base, layer, config)
}

fn redis(base: &Image) -> Result<Image> {
    let mut layer = LayerBuilder::default();
    layer.program(&program("redis-server")?, Path::new("/usr/bin/redis-server"))?;
    layer.dir("data", 0o755, SERVICE_USER)?;
    let config = json!({"Cmd": ["redis-server", "--protected-mode", "no", "--save", ""], "User": SERVICE_USER.to_string(),
                        "WorkingDir": "/data", "Env": ["PATH=/usr/bin:/usr/sbin"], "ExposedPorts": {"6379/tcp": {}}});
    Image::on(base, layer, config)
}

fn postgres(base: &Image) -> Result<Image> {
    let version = newest(Path::new("/usr/lib/postgresql"))?;
    let (lib, share) =
        (Path::new("/usr/lib/postgresql").join(&version), Path::new("/usr/share/postgresql").join(&version));
    let mut layer = LayerBuilder::default();
    for name in ["postgres", "initdb", "psql", "pg_isready"] {
        let path = lib.join("bin").join(name);
        layer.program(&path, &path)?;
        layer.link(&format!("usr/bin/{name}"), &path.to_string_lossy())?;
    }
    for name in ["plpgsql.so", "dict_snowball.so", "amcheck.so"] {
        let path = lib.join("lib").join(name);
        layer.program(&path, &path)?;
    }
    for name in [
        "postgres.bki",
        "information_schema.sql",
        "sql_features.txt",
        "system_constraints.sql",
        "system_functions.sql",
        "system_views.sql",
        "snowball_create.sql",
        "errcodes.txt",
        "pg_hba.conf.sample",
        "pg_ident.conf.sample",
        "postgresql.conf.sample",
        "extension/plpgsql.control",
        "extension/plpgsql--1.0.sql",
        "extension/amcheck.control",
        "extension/amcheck--1.0.sql",
        "extension/amcheck--1.0--1.1.sql",
        "extension/amcheck--1.1--1.2.sql",
        "extension/amcheck--1.2--1.3.sql",
    ] {
        let path = share.join(name);
        if path.exists() {
            layer.copy(&path)?;
        }
    }
    for directory in ["timezonesets", "tsearch_data"] {
        layer.tree(&share.join(directory))?;
    }
    layer.copy(Path::new("/usr/share/zoneinfo/UTC")).or_else(|_| layer.file("usr/share/zoneinfo/.keep", b"", 0o644))?;
    layer.file("usr/bin/entrypoint", &asset("postgres/entrypoint")?, 0o755)?;
    layer.dir("var/lib/postgresql/data", 0o700, SERVICE_USER)?;
    let config = json!({"Entrypoint": ["entrypoint"], "User": SERVICE_USER.to_string(), "ExposedPorts": {"5432/tcp": {}},
                        "Env": ["PATH=/usr/bin:/usr/sbin", "PGDATA=/var/lib/postgresql/data"], "StopSignal": "SIGINT"});
    Image::on(base, layer, config)
}

fn checked(base: &Image) -> Result<Image> {
    let check = json!({"Test": ["CMD-SHELL", "test -e /tmp/well"], "Interval": 1_000_000_000, "Retries": 2});
    let config = json!({"Cmd": ["sleep", "2147483647"], "Env": ["PATH=/usr/bin:/usr/sbin"], "Healthcheck": check,
                        "Volumes": {"/kept": {}}});
    let mut layer = LayerBuilder::default();
    layer.dir("kept", 0o750, SERVICE_USER)?;
    layer.file("kept/seed", b"seed\n", 0o644)?;
    Image::on(base, layer, config)
}

fn realtime(base: &Image) -> Result<Image> {
    let mut layer = LayerBuilder::default();
    layer.program(&program("chrt")?, Path::new("/usr/bin/chrt"))?;
    Image::on(base, layer, json!({"Cmd": ["sleep", "2147483647"], "Env": ["PATH=/usr/bin:/usr/sbin"]}))
}

fn misbehaving(base: &Image, name: &str) -> Result<Image> {
    let mut layer = LayerBuilder::default();
    layer.file(&format!("usr/bin/{name}"), &asset(&format!("misbehaving/{name}"))?, 0o755)?;
    Image::on(base, layer, json!({"Cmd": [name], "Env": ["PATH=/usr/bin:/usr/sbin"]}))
}

/// Names a set of images: another version of a package, of a file of ours, or of this code makes another set.
fn key() -> Result<String> {
    let packages = ["busybox-static", "nginx", "redis-server", "postgresql", "util-linux", "libc6"];
    let versions = Command::new("dpkg-query").args(["-W", "-f", "${Package}=${Version}\n"]).args(packages).output();
    let mut material = versions.map(|output| output.stdout).unwrap_or_default();
    for source in [include_str!("catalog.rs"), include_str!("store.rs"), include_str!("../images.rs")] {
        material.extend(source.as_bytes());
    }
    for name in [
        "nginx/nginx.conf",
        "postgres/entrypoint",
        "misbehaving/counter",
        "misbehaving/crashes",
        "misbehaving/ignores-term",
        "misbehaving/floods",
        "misbehaving/eats-memory",
    ] {
        material.extend(asset(name)?);
    }
    Ok(digest(&material)["sha256:".len()..][..12].to_owned())
}

/// A file of `tests/images/`.
fn asset(name: &str) -> Result<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(name);
    fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// Where a program of this machine is; root's PATH does not always have `/usr/sbin`.
fn program(name: &str) -> Result<PathBuf> {
    let places = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
    found.with_context(|| format!("{name} is not installed; `make deps` installs it"))
}

/// The highest-numbered entry of a directory.
fn newest(directory: &Path) -> Result<String> {
    let entries = fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .max_by_key(|name| name.parse::<u32>().unwrap_or(0))
        .with_context(|| format!("{} is empty", directory.display()))
}
