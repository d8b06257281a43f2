//! Pulls that go well, and refusals that say why.

use std::sync::{Arc, Mutex};

use super::fixture::*;
use crate::images::config::image_config;
use crate::images::conformance;
use crate::images::{Error, Fetch, Images as _, Options, Phase, Progress};
use crate::runtime::Error as RuntimeError;
use crate::testing::{PrivateContainerd, busybox_layers};

#[tokio::test]
async fn a_pull_makes_a_runnable_image_and_removing_it_leaves_nothing() {
    let (mut node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    registry.push("app:1", &busybox_layers());
    let images = images(&node, Options::default());
    let name = registry.name("app:1");
    assert_eq!(images.get(&name).await.unwrap(), None);

    let seen = Arc::new(Mutex::new(Vec::<Progress>::new()));
    let sink = seen.clone();
    let fetch = from_registry(&name);
    let image = images.fetch(&fetch, Arc::new(move |p| sink.lock().unwrap().push(p))).await.unwrap();
    assert_eq!(image.reference, name);
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let last = seen.last().unwrap();
    assert_eq!((last.phase, last.bytes_done, last.bytes_total), (Phase::Ready, image.size, image.size));
    assert!(seen.windows(2).all(|w| w[0].bytes_done <= w[1].bytes_done), "{seen:?}");

    assert_eq!(images.get(&name).await.unwrap().as_ref(), Some(&image));
    assert_eq!(images.list().await.unwrap(), std::slice::from_ref(&image));
    assert_eq!(images.resolve(&fetch).await.unwrap(), image.digest);
    assert_eq!(node.ctr(["leases", "list", "-q"]).trim(), "", "the lease is gone");

    // The collector has run with the lease's end; what the image needs must have survived that and a restart.
    node.restart().await;
    let (config, top) = image_config(&node.containerd(), &name).await.unwrap();
    assert_eq!(config.config().as_ref().unwrap().cmd().as_deref().unwrap(), ["sh"]);
    assert!(node.ctr(["snapshots", "list"]).contains(&top));
    let cgroup = format!("{}/c1", node.cgroup_parent());
    let said = node.ctr(["run", "--rm", "--cgroup", &cgroup, &name, "c1", "sh", "-c", "ls /etc; echo works"]);
    assert!(said.contains("works") && !said.contains("gone"), "whiteouts are applied: {said}");

    images.remove(&name).await.unwrap();
    images.remove(&name).await.unwrap();
    assert_eq!(inventory(&node), Vec::<String>::new());
    assert!(matches!(image_config(&node.containerd(), &name).await, Err(RuntimeError::NotFound { .. })));
}

#[tokio::test]
async fn a_second_pull_transfers_no_layer_and_a_moved_tag_only_the_new_one() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    let (base, one, two) = (random_layer("base", 1 << 20), random_layer("one", 1 << 20), random_layer("two", 1 << 20));
    registry.push("app:1", &[base.clone(), one]);
    let proxy = Proxy::start(registry.port).await;
    let images = images(&node, Options::default());
    let fetch = from_registry(&proxy.name("app:1"));
    let first = images.fetch(&fetch, silent()).await.unwrap();
    assert!(proxy.take() > 2 << 20);
    assert_eq!(images.fetch(&fetch, silent()).await.unwrap(), first);
    assert!(proxy.take() < 64 << 10, "documents only");

    registry.push("app:1", &[base, two]);
    let second = images.fetch(&fetch, silent()).await.unwrap();
    assert_ne!(second.digest, first.digest);
    let sent = proxy.take();
    assert!(sent > 1 << 20 && sent < (1 << 20) + (128 << 10), "{sent}");
    assert_eq!(images.list().await.unwrap(), [second]);
}

#[tokio::test]
async fn equal_wishes_share_one_transfer_and_equal_layers_too() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    let shared = random_layer("shared", 4 << 20);
    for i in 0..4 {
        registry.push(&format!("app{i}:1"), &[shared.clone(), file_layer("own", &[i])]);
    }
    let proxy = Proxy::start(registry.port).await;
    let images = images(&node, Options { parallel_pulls: 8, ..Options::default() });
    let fetches = (0..12).map(|i| {
        let (images, fetch) = (images.clone(), from_registry(&proxy.name(&format!("app{}:1", i % 4))));
        async move { images.fetch(&fetch, silent()).await.unwrap() }
    });
    let done = futures::future::join_all(fetches).await;
    assert_eq!(done.len(), 12);
    let sent = proxy.take();
    assert!(sent > 4 << 20 && sent < 5 << 20, "the shared layer came once: {sent}");
    assert_eq!(images.list().await.unwrap().len(), 4);
    let snapshots = node.ctr(["snapshots", "list"]);
    assert_eq!(snapshots.lines().count(), 1 + 1 + 4, "{snapshots}");
    assert!(!snapshots.contains("extract-"));
}

#[tokio::test]
async fn the_platform_is_chosen_and_its_absence_is_explained() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    registry.push("app:1", &[file_layer("a", b"a")]);
    let images = images(&node, Options::default());
    let fetch = Fetch { platform: Some("linux/s390x".to_owned()), ..from_registry(&registry.name("app:1")) };
    let error = images.fetch(&fetch, silent()).await.unwrap_err();
    assert!(matches!(&error, Error::Platform { platform, .. } if platform == "linux/s390x"), "{error}");
    assert_eq!(inventory(&node), Vec::<String>::new());
    let fetch = Fetch { platform: Some("nonsense".to_owned()), ..fetch };
    assert!(matches!(images.fetch(&fetch, silent()).await, Err(Error::InvalidReference { .. })));
}

#[tokio::test]
async fn zstd_and_plain_layers_are_taken() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    let images = images(&node, Options::default());
    let layers = busybox_layers();
    let archive = registry.dir.path().join("x.tar");
    crate::testing::write_archive(&archive, "x.test/x:1", &layers, &serde_json::json!({}));
    let layout = format!("oci:{}:1", registry.dir.path().join("layout").display());
    skopeo(
        vec!["copy", "-q", "--dest-compress", "--dest-compress-format=zstd"],
        &[&format!("oci-archive:{}", archive.display()), &layout],
    );
    let zstd = format!("docker://{}", registry.name("zstd:1"));
    skopeo(vec!["copy", "-q", "--format=oci", "--dest-tls-verify=false"], &[&layout, &zstd]);
    images.fetch(&from_registry(&registry.name("zstd:1")), silent()).await.unwrap();
    registry.push_with("two:1", &[file_layer("a", b"a")], &["--format=v2s2"]);
    images.fetch(&from_registry(&registry.name("two:1")), silent()).await.unwrap();
    assert_eq!(images.list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_is_absent_or_forbidden_says_so() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    let images = images(&node, Options { attempts: 1, ..Options::default() });
    let error = images.fetch(&from_registry(&registry.name("nothing:1")), silent()).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    let error = images.resolve(&from_registry(&registry.name("nothing:1"))).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    let nobody = format!("127.0.0.1:{}/x:1", free_port());
    let error = images.fetch(&from_registry(&nobody), silent()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(inventory(&node), Vec::<String>::new());
}

#[tokio::test]
async fn passwords_open_a_registry() {
    let node = PrivateContainerd::start().await;
    let dir = tempfile::tempdir().unwrap();
    // user "user" with password "secret", by bcrypt.
    let file = dir.path().join("htpasswd");
    std::fs::write(&file, "user:$2b$04$bJaxLoPT7pItm.p43Z29q.rvwnuLVvPthrok6O1kPhJje0cBMAXDq\n").unwrap();
    let registry = Registry::start_with(&format!("auth: {{htpasswd: {{realm: x, path: {}}}}}", file.display())).await;
    let images = images(&node, Options { attempts: 1, ..Options::default() });
    let fetch = from_registry(&registry.name("app:1"));
    let error = images.fetch(&fetch, silent()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    let error = images.fetch(&with_password(fetch.clone(), "user", "wrong"), silent()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    registry.push_with("app:1", &[random_layer("a", 1 << 20)], &["--dest-creds=user:secret"]);
    // At the same time, one with and one without the password: neither decides for the other.
    let (good, bad) = (with_password(fetch.clone(), "user", "secret"), fetch);
    let (bad, good) = tokio::join!(images.fetch(&bad, silent()), images.fetch(&good, silent()));
    good.unwrap();
    assert!(matches!(bad, Err(Error::Unauthorized { .. })), "{bad:?}");
}

#[tokio::test]
async fn mirrors_are_asked_first() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    registry.push("app:1", &busybox_layers());
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("registry.invalid")).unwrap();
    let dead = free_port();
    std::fs::write(
        dir.path().join("registry.invalid/hosts.toml"),
        format!("[host.\"http://127.0.0.1:{dead}\"]\n[host.\"http://127.0.0.1:{}\"]\n", registry.port),
    )
    .unwrap();
    let options = Options { registries_dir: Some(dir.path().to_owned()), attempts: 1, ..Options::default() };
    let image = images(&node, options).fetch(&from_registry("registry.invalid/app:1"), silent()).await.unwrap();
    assert_eq!(image.reference, "registry.invalid/app:1");
}

struct Real {
    node: PrivateContainerd,
    registry: Registry,
    images: crate::images::ContainerdImages,
}

#[async_trait::async_trait]
impl conformance::Node for Real {
    fn images(&self) -> &dyn crate::images::Images {
        &self.images
    }
    fn name(&self, name: &str) -> String {
        self.registry.name(name)
    }
    async fn push(&self, name: &str, content: &str) {
        self.registry.push(name, &[file_layer("content", content.as_bytes())]);
    }
    async fn archive(&self, content: &str) -> std::path::PathBuf {
        let path = self.node.dir().join(format!("{content}.tar"));
        let layer = file_layer("content", content.as_bytes());
        crate::testing::write_archive(&path, "other.test/x:1", &[layer], &serde_json::json!({}));
        path
    }
}

#[tokio::test]
async fn the_driver_conforms() {
    let (node, registry) = (PrivateContainerd::start().await, Registry::start().await);
    let images = images(&node, Options { attempts: 1, ..Options::default() });
    let real = Real { node, registry, images };
    conformance::run(&real).await;
    assert_eq!(inventory(&real.node), Vec::<String>::new());
}
