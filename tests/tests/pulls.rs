//! Pulls through a proxy that breaks them: what has arrived is never asked for again, a bad answer has a reason, and
//! nothing half done is seen or left.

#[path = "pulls/support.rs"]
mod support;

use std::time::Duration;

use nodelet_drivers::images::{Damage, Error, Images as _, Options};
use nodelet_tests::containerd::Release;
use nodelet_tests::fault_proxy::Fault;
use rand::Rng as _;
use support::*;

const MIB: u64 = 1 << 20;

/// Runs a test on the distribution's containerd and on 2.x.
macro_rules! on_each_containerd {
    ($($test:ident),* $(,)?) => {
        mod containerd_1 {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(nodelet_tests::containerd::Release::System).await;
            })*
        }
        mod containerd_2 {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(nodelet_tests::containerd::Release::V2).await;
            })*
        }
    };
}

/// What `pulls_by_agent` tries on both, with the whole agent.
mod containerd_2_alone {
    use nodelet_tests::containerd::Release;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pull_cut_at_ten_points_continues_from_the_byte() {
        super::a_pull_cut_at_ten_points_continues_from_the_byte(Release::V2).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_killed_puller_is_continued_by_the_next() {
        super::a_killed_puller_is_continued_by_the_next(Release::V2).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_killed_containerd_costs_what_was_under_way() {
        super::a_killed_containerd_costs_what_was_under_way(Release::V2).await;
    }
}

on_each_containerd! {
    every_bad_answer_has_its_reason_and_leaves_nothing,
    an_expired_token_is_renewed_in_the_middle_of_a_layer,
    twenty_images_transfer_each_blob_once,
    a_slow_image_delays_no_other,
    damage_is_found_and_put_right,
    a_hostile_layer_is_refused_and_leaves_nothing,
}

/// Not a test: the process that others start to kill it.
#[tokio::test]
#[ignore = "a child of other tests"]
async fn child() {
    pull_as_child().await;
}

async fn a_pull_cut_at_ten_points_continues_from_the_byte(release: Release) {
    let Some(world) = World::start(release).await else { return };
    world.registry.push("app:1", &[random_layer("a", 5 << 20), random_layer("b", 3 << 20), random_layer("c", 1 << 10)]);
    let wish = fetch(&world.proxy.name("app:1"));
    // One after the other, so that every byte can be accounted for.
    let options = Options { attempts: 1, parallel_layers: 1, ..Options::default() };
    let total = {
        let image = world.images(options.clone()).fetch(&wish, silent()).await.expect("an undisturbed pull");
        world.assert_leaves_nothing(&wish.reference).await;
        world.proxy.take();
        image.size
    };
    for _ in 0..10 {
        let at = rand::rng().random_range(1..4 * MIB);
        // Whichever layer is asked for first or second, one of those that are long enough is cut.
        world.proxy.inject("/blobs/", 1, Fault::IgnoreRange);
        world.proxy.inject("/blobs/", 1, Fault::CutAfter(at));
        let error = world.images(options.clone()).fetch(&wish, silent()).await;
        world.proxy.heal();
        let first = world.proxy.take();
        // The configuration is the first blob, a layer the second. A cut beyond the end of a short layer is none.
        let Err(error) = error else {
            world.assert_leaves_nothing(&wish.reference).await;
            continue;
        };
        assert_eq!(error.reason(), "RegistryUnreachable", "{}", chain(&error));
        assert_eq!(world.images(options.clone()).get(&wish.reference).await.expect("an answer"), None);
        let image = world.images(options.clone()).fetch(&wish, silent()).await.expect("the second attempt");
        let second = world.proxy.take();
        let sent = first.bytes() + second.bytes();
        // The configuration is small and asked for again unless it was stored.
        assert!(sent < total + (64 << 10), "cut at {at}: {} + {} for {total}", first.bytes(), second.bytes());
        world.assert_whole(&wish, &image).await;
        world.assert_leaves_nothing(&wish.reference).await;
    }
}

async fn a_killed_puller_is_continued_by_the_next(release: Release) {
    let Some(world) = World::start(release).await else { return };
    let layers: Vec<_> = (0..4).map(|i| random_layer(&format!("f{i}"), 12 << 20)).collect();
    world.registry.push("app:1", &layers);
    let wish = fetch(&world.proxy.name("app:1"));
    for _ in 0..3 {
        let at = rand::rng().random_range(12 * MIB..36 * MIB);
        // So slow that the puller keeps up, and sockets hold little of what was sent.
        world.proxy.inject("/blobs/", usize::MAX, Fault::Slow(6 << 20));
        let mut puller = Puller::start(&world.node, &wish.reference);
        while world.proxy.bytes() < at && puller.running() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        puller.kill();
        world.proxy.heal();
        let first = world.proxy.take();
        let images = world.images(Options::default());
        assert_eq!(images.get(&wish.reference).await.expect("an answer"), None, "no partial image is visible");
        let image = images.fetch(&wish, silent()).await.expect("the next attempt");
        let second = world.proxy.take();
        let (had, more) = (first.bytes(), second.bytes());
        assert!(more < image.size - at + UNDER_WAY, "{had} + {more} for {}", image.size);
        world.assert_whole(&wish, &image).await;
        world.assert_leaves_nothing(&wish.reference).await;
    }
}

async fn a_killed_containerd_costs_what_was_under_way(release: Release) {
    let Some(mut world) = World::start(release).await else { return };
    let layers: Vec<_> = (0..4).map(|i| random_layer(&format!("f{i}"), 12 << 20)).collect();
    world.registry.push("app:1", &layers);
    let wish = fetch(&world.proxy.name("app:1"));
    for _ in 0..3 {
        let at = rand::rng().random_range(12 * MIB..36 * MIB);
        world.proxy.inject("/blobs/", usize::MAX, Fault::Slow(6 << 20));
        let images = world.images(impatient());
        let pull = tokio::spawn({
            let wish = wish.clone();
            async move { images.fetch(&wish, silent()).await }
        });
        while world.proxy.bytes() < at && !pull.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.node.restart().await;
        let outcome = pull.await.expect("no panic");
        world.proxy.heal();
        let first = world.proxy.take();
        let image = match outcome {
            Ok(image) => image,
            Err(_) => world.images(Options::default()).fetch(&wish, silent()).await.expect("the next attempt"),
        };
        let second = world.proxy.take();
        let (had, more) = (first.bytes(), second.bytes());
        assert!(more < image.size - at + UNDER_WAY, "{had} + {more} for {}", image.size);
        world.assert_whole(&wish, &image).await;
        world.assert_leaves_nothing(&wish.reference).await;
    }
}

async fn every_bad_answer_has_its_reason_and_leaves_nothing(release: Release) {
    let Some(world) = World::start(release).await else { return };
    world.registry.push("app:1", &[random_layer("a", 2 << 20), random_layer("b", 100)]);
    let wish = fetch(&world.proxy.name("app:1"));
    let blobs = "/blobs/";
    let wait = Fault::Status { code: 429, headers: "Retry-After: 7\r\n".into(), body: String::new() };
    let cases = [
        (blobs, Fault::CutAfter(MIB), "RegistryUnreachable"),
        (blobs, Fault::StallAfter(1000), "RegistryUnreachable"),
        (blobs, Fault::WrongByte(20), "ContentCorrupt"),
        (blobs, Fault::ClaimMore(1000), "ContentCorrupt"),
        (blobs, Fault::Truncated(10), "ContentCorrupt"),
        (blobs, Fault::Endless, "ContentCorrupt"),
        (blobs, Fault::status(401), "Unauthorized"),
        (blobs, Fault::status(403), "Unauthorized"),
        (blobs, Fault::status(404), "ImageNotFound"),
        (blobs, wait, "RegistryBusy"),
        (blobs, Fault::status(500), "RegistryUnreachable"),
        (blobs, Fault::status(503), "RegistryBusy"),
        ("/manifests/", Fault::CutAfter(20), "RegistryUnreachable"),
        ("/manifests/", Fault::status(401), "Unauthorized"),
        ("/manifests/", Fault::status(404), "ImageNotFound"),
        ("/manifests/", Fault::status(429), "RegistryBusy"),
        ("/manifests/", Fault::status(500), "RegistryUnreachable"),
        ("/manifests/", Fault::WrongByte(0), "ContentCorrupt"),
        ("/manifests/", Fault::Endless, "ImageUnusable"),
        ("/manifests/", Fault::Truncated(30), "ContentCorrupt"),
        ("/manifests/", Fault::StallAfter(10), "RegistryUnreachable"),
    ];
    for (path, fault, reason) in cases {
        let case = format!("{path} {fault:?}");
        world.proxy.inject(path, usize::MAX, fault.clone());
        let images = world.images(impatient());
        let limit = Duration::from_secs(20);
        let outcome = tokio::time::timeout(limit, images.fetch(&wish, silent())).await;
        let error = outcome.unwrap_or_else(|_| panic!("{case} takes for ever")).expect_err(&case);
        assert!(reason.split(' ').any(|r| r == error.reason()), "{case}: {} {}", error.reason(), chain(&error));
        if matches!(&fault, Fault::Status { headers, .. } if headers.contains("Retry-After")) {
            assert_eq!(error.retry_after(), Some(Duration::from_secs(7)), "{case}");
        }
        assert_eq!(images.list().await.expect("an answer"), [], "{case}: no partial image is visible");
        world.proxy.heal();
        let image = images.fetch(&wish, silent()).await.unwrap_or_else(|e| panic!("after {case}: {}", chain(&e)));
        world.assert_whole(&wish, &image).await;
        world.assert_leaves_nothing(&wish.reference).await;
    }
}

async fn an_expired_token_is_renewed_in_the_middle_of_a_layer(release: Release) {
    let Some(world) = World::start(release).await else { return };
    world.registry.push("app:1", &[random_layer("a", 6 << 20)]);
    world.proxy.want_tokens(true);
    let wish = fetch(&world.proxy.name("app:1"));
    // The configuration comes whole; then the layer is cut, and from then on the token is worth nothing.
    world.proxy.inject("/blobs/", 1, Fault::IgnoreRange);
    world.proxy.inject("/blobs/", 1, Fault::CutAfter(2 * MIB));
    let image = world.images(Options::default()).fetch(&wish, silent()).await.expect("one fetch goes through it all");
    assert_eq!(world.proxy.tokens_given(), 2);
    let sent = world.proxy.take().bytes();
    assert!(sent < image.size + (64 << 10), "{sent} for {}", image.size);
    world.assert_whole(&wish, &image).await;
}

async fn twenty_images_transfer_each_blob_once(release: Release) {
    let Some(world) = World::start(release).await else { return };
    let shared = [random_layer("base", 4 << 20), random_layer("more", 2 << 20)];
    for i in 0..20 {
        let own = random_layer("own", 100 << 10);
        world.registry.push(&format!("app{i}:1"), &[shared[0].clone(), shared[1].clone(), own]);
    }
    let images = world.images(Options::default());
    let pulls = (0..20).map(|i| {
        let (images, wish) = (images.clone(), fetch(&world.proxy.name(&format!("app{i}:1"))));
        tokio::spawn(async move { images.fetch(&wish, silent()).await })
    });
    for pull in futures::future::join_all(pulls).await {
        pull.expect("no panic").expect("every pull succeeds");
    }
    let counts = world.proxy.take();
    // Two shared layers, and a layer and a configuration for each.
    assert_eq!(counts.blobs.len(), 2 + 2 * 20);
    assert_eq!(counts.blob_requests(), counts.blobs.len(), "each blob is asked for once");
    let sizes: std::collections::BTreeMap<_, _> =
        images.usage().await.expect("an answer").blobs.into_iter().map(|b| (b.digest, b.size)).collect();
    for (digest, bytes) in &counts.blobs {
        assert_eq!(sizes.get(digest), Some(bytes), "{digest} was transferred once, whole");
    }
}

async fn a_slow_image_delays_no_other(release: Release) {
    let Some(world) = World::start(release).await else { return };
    // More slow images than there are places for pulls and transfers.
    for i in 0..5 {
        world.registry.push(&format!("slow{i}:1"), &[random_layer("a", 1 << 20), random_layer("b", 1 << 20)]);
    }
    world.registry.push("quick:1", &[random_layer("q", 4 << 20)]);
    world.proxy.inject("/slow", usize::MAX, Fault::Slow(2 << 10));
    let images = world.images(Options::default());
    let slow: Vec<_> = (0..5)
        .map(|i| {
            let (images, wish) = (images.clone(), fetch(&world.proxy.name(&format!("slow{i}:1"))));
            tokio::spawn(async move { images.fetch(&wish, silent()).await })
        })
        .collect();
    // Places for transfers are taken, as far as slow ones take any.
    let mut asked = 0;
    while asked < Options::default().parallel_layers {
        asked += world.proxy.take().blob_requests();
        assert!(!slow.iter().all(tokio::task::JoinHandle::is_finished), "the slow ones have ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let quick = fetch(&world.proxy.name("quick:1"));
    let outcome = tokio::time::timeout(Duration::from_secs(15), images.fetch(&quick, silent())).await;
    outcome.expect("it does not wait for the slow ones").expect("it is pulled");
    for pull in slow {
        assert!(!pull.is_finished(), "the slow ones are still at it");
        pull.abort();
    }
}

async fn damage_is_found_and_put_right(release: Release) {
    let Some(mut world) = World::start(release).await else { return };
    world.registry.push("app:1", &[random_layer("a", 3 << 20), random_layer("b", 1 << 20), random_layer("c", 1000)]);
    let wish = fetch(&world.proxy.name("app:1"));
    let image = world.images(Options::default()).fetch(&wish, silent()).await.expect("a pull");
    world.proxy.take();
    let root = world.node.dir().join("root");
    let snapshots: Vec<_> = files(&root.join("io.containerd.snapshotter.v1.overlayfs/snapshots"));
    let blobs = files(&root.join("io.containerd.content.v1.content/blobs"));
    let size = |path: &std::path::PathBuf| std::fs::metadata(path).expect("a file").len();
    let largest = blobs.iter().max_by_key(|path| size(path)).expect("blobs").clone();
    let file = snapshots.iter().find(|path| path.ends_with("fs/b")).expect("the layer's file").clone();
    let cut = |path: &std::path::PathBuf, to: u64| {
        std::fs::File::options().write(true).open(path).expect("a file").set_len(to).expect("truncating")
    };
    for (blob, snapshot) in [(true, false), (false, true), (true, true)] {
        // What a power cut leaves: containerd knows the names, and the files are shorter than they should be.
        world.node.kill();
        if blob {
            cut(&largest, 1000);
        }
        if snapshot {
            cut(&file, 10);
        }
        world.node.restart().await;
        let images = world.images(Options::default());
        let damage = images.verify(&wish.reference).await.expect("an answer");
        let (blobs, snapshots): (Vec<_>, Vec<_>) = damage.iter().partition(|d| matches!(d, Damage::Blob { .. }));
        assert_eq!((blobs.len(), snapshots.len()), (usize::from(blob), usize::from(snapshot)), "{damage:?}");
        let again = images.repair(&wish, &damage, silent()).await.expect("repairing");
        assert_eq!(again, image);
        world.assert_whole(&wish, &image).await;
        assert_eq!(size(&file), 1 << 20);
        let bytes = world.proxy.take().bytes();
        assert!(
            blob == (bytes > 3 << 20) && bytes < (3 << 20) + (64 << 10),
            "only the damaged blob comes again: {bytes}"
        );
    }
    world.assert_leaves_nothing(&wish.reference).await;
}

async fn a_hostile_layer_is_refused_and_leaves_nothing(release: Release) {
    let Some(world) = World::start(release).await else { return };
    for (i, (name, kind)) in
        [("../../escaped", tar::EntryType::Regular), ("dev/sda", tar::EntryType::Block)].into_iter().enumerate()
    {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o666);
        header.set_size(0);
        header.set_device_major(8).expect("a number");
        header.set_device_minor(0).expect("a number");
        header.set_cksum();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append(&header, std::io::empty()).expect("memory takes every byte");
        let hostile = nodelet_drivers::testing::Layer(tar.into_inner().expect("memory"));
        world.registry.push(&format!("hostile{i}:1"), &[random_layer("base", 100), hostile]);
        let wish = fetch(&world.proxy.name(&format!("hostile{i}:1")));
        let images = world.images(Options::default());
        let error = images.fetch(&wish, silent()).await.expect_err(name);
        assert_eq!(error.reason(), "LayerRefused", "{}", chain(&error));
        assert!(chain(&error).contains("escaped") || chain(&error).contains("dev/sda"), "{}", chain(&error));
        assert_eq!(images.list().await.expect("an answer"), []);
        world.assert_leaves_nothing(&wish.reference).await;
    }
}

/// A reason is one word, whatever the error.
#[test]
fn reasons_are_words() {
    let error = Error::NotFound { reference: "x".into() };
    assert!(error.reason().chars().all(char::is_alphanumeric));
}
