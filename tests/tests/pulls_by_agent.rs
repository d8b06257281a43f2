//! Pulls of the real agent through a proxy that breaks them: however the way, the agent or containerd is cut, no more
//! comes again than what was under way, and what comes out is what was pushed. What is no good has a condition that says
//! so, is never seen as an image, and leaves nothing.

#[path = "pulls_by_agent/support.rs"]
mod support;

use std::fs;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::fault_proxy::Fault;
use nodelet_tests::images::{Image, LayerBuilder};
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use support::*;

nodelet_tests::on_each_containerd!(
    a_pull_cut_at_ten_points_continues_from_the_byte,
    a_pull_continues_from_the_byte_after_ten_kills_of_the_agent,
    a_pull_continues_from_the_byte_after_ten_kills_of_containerd,
    an_image_that_lies_has_its_condition_and_leaves_nothing,
    a_hostile_layer_has_its_condition_and_leaves_nothing,
    twenty_images_share_their_layers_and_wait_for_no_slow_one,
);
nodelet_tests::on_containerd!(
    a_bad_answer_has_its_condition_and_leaves_nothing,
    a_token_that_expires_within_a_layer_is_renewed,
);

/// Of each disturbed pull.
const POINTS: usize = 10;

/// Layers of the image: as many as are transferred at once.
const LAYERS: usize = 4;

/// Of each layer, in bytes.
const LAYER: usize = 2 << 20;

/// What a connection may carry in a second, so that the pull keeps up and little is under way.
const RATE: u64 = 2 << 20;

/// What may come again after a cut connection: the end of what sockets hold. What was read is written out.
const LOST_BY_CUT: u64 = 256 << 10;

/// What may come again after a kill, for each layer: the message being filled, one queued and one on its way to
/// containerd (128 KiB each), and what the sockets hold.
const LOST_BY_KILL: u64 = 768 << 10;

fn a_pull_cut_at_ten_points_continues_from_the_byte(node: &mut Node) -> Result<()> {
    disturbed(node, LOST_BY_CUT, |_, site, at| {
        let before = site.proxy.cuts();
        site.proxy.cut_at(at);
        until(PATIENCE, "the cut", || Ok((site.proxy.cuts() > before).then_some(())))
    })
}

fn a_pull_continues_from_the_byte_after_ten_kills_of_the_agent(node: &mut Node) -> Result<()> {
    disturbed(node, LOST_BY_KILL * LAYERS as u64, |node, site, at| {
        until(PATIENCE, "bytes to come", || Ok((site.proxy.bytes() >= at).then_some(())))?;
        node.kill_agent()?;
        no_image(node)?;
        node.start_agent()
    })
}

fn a_pull_continues_from_the_byte_after_ten_kills_of_containerd(node: &mut Node) -> Result<()> {
    disturbed(node, LOST_BY_KILL * LAYERS as u64, |node, site, at| {
        until(PATIENCE, "bytes to come", || Ok((site.proxy.bytes() >= at).then_some(())))?;
        node.kill_containerd()?;
        node.start_containerd()
    })
}

/// Pulls an image as often as there are points, disturbed each time when so many bytes have come in all; no pull may
/// take more than the image and `slack`.
#[allow(clippy::print_stderr, reason = "what makes a failure repeatable, and figures for the reader")]
fn disturbed(node: &mut Node, slack: u64, mut disturb: impl FnMut(&mut Node, &Site, u64) -> Result<()>) -> Result<()> {
    let seed: u64 =
        std::env::var("NODELET_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("NODELET_TEST_SEED={seed}");
    let mut points = StdRng::seed_from_u64(seed);
    let site = Site::on(node)?;
    let layers =
        (0..LAYERS).map(|i| random_layer(&format!("srv/{i}"), LAYER, points.random())).collect::<Result<_>>()?;
    let image = site.push("app", layers)?;
    for _ in 0..POINTS {
        let at = points.random_range(1..image.size - 1);
        let begin = Instant::now();
        site.proxy.take();
        site.proxy.inject("/blobs/", usize::MAX, Fault::Slow(RATE));
        want(node, &image.reference)?;
        disturb(node, &site, at)?;
        site.proxy.heal();
        until_whole(node, &image)?;
        let counts = site.proxy.take();
        let again = counts.bytes().saturating_sub(image.size);
        eprintln!("at {at} of {}: {again} bytes came again, {:?}", image.size, begin.elapsed());
        ensure!(
            counts.bytes() <= image.size + slack,
            "seed {seed}, at {at}: {} bytes for {}, {slack} more are allowed\n{:#?}",
            counts.bytes(),
            image.size,
            counts
        );
        until_nothing_left(node)?;
    }
    Ok(())
}

fn a_bad_answer_has_its_condition_and_leaves_nothing(node: &mut Node) -> Result<()> {
    let config = fs::read_to_string(node.config())? + "images: {stallSeconds: 1}\n";
    fs::write(node.config(), config)?;
    node.stop_agent()?;
    node.start_agent()?;
    let site = Site::on(node)?;
    let image = site.push("app", vec![random_layer("srv/a", 1 << 20, 1)?, random_layer("srv/b", 100, 2)?])?;
    // Longer than the driver waits by itself, so that the object says it.
    let busy = |code| Fault::Status { code, headers: "Retry-After: 3600\r\n".into(), body: String::new() };
    let (blobs, manifests) = ("/blobs/", "/manifests/");
    for (path, fault, words) in [
        (blobs, Fault::CutAfter(0), &["getting the blob"][..]),
        (blobs, Fault::StallAfter(0), &["getting the blob", "timed out"]),
        (blobs, Fault::WrongByte(20), &["is damaged"]),
        (blobs, Fault::ClaimMore(1000), &["is damaged", "its manifest says"]),
        (blobs, Fault::Truncated(10), &["is damaged", "its manifest says"]),
        (blobs, Fault::Endless, &["is damaged", "more than its"]),
        (blobs, Fault::status(401), &["refused access"]),
        (blobs, Fault::status(403), &["refused access"]),
        (blobs, Fault::status(404), &["is not in the registry"]),
        (blobs, busy(429), &["too busy", "429"]),
        (blobs, Fault::status(500), &["500"]),
        (blobs, busy(503), &["too busy", "503"]),
        (manifests, Fault::status(404), &["is not in the registry"]),
        (manifests, Fault::WrongByte(0), &["is damaged"]),
        (manifests, Fault::Endless, &["is not a usable image"]),
    ] {
        let what = format!("{path} {fault:?}");
        let waits = matches!(&fault, Fault::Status { headers, .. } if !headers.is_empty());
        site.proxy.inject(path, usize::MAX, fault);
        want(node, &image.reference)?;
        until_failed(node, &what, words)?;
        site.proxy.heal();
        if waits {
            // Nobody comes back before the time that the registry wants, unless asked to.
            until_nothing_left(node)?;
            want(node, &image.reference)?;
        }
        until_whole(node, &image).with_context(|| format!("after {what}"))?;
        until_nothing_left(node).with_context(|| format!("after {what}"))?;
    }
    Ok(())
}

fn a_token_that_expires_within_a_layer_is_renewed(node: &mut Node) -> Result<()> {
    let site = Site::on(node)?;
    let image = site.push("app", vec![random_layer("srv/a", LAYER, 3)?])?;
    site.proxy.want_tokens(true);
    site.proxy.cut_at(1 << 20);
    want(node, &image.reference)?;
    until_whole(node, &image)?;
    ensure!(site.proxy.tokens_given() == 2, "{} tokens were given", site.proxy.tokens_given());
    let bytes = site.proxy.take().bytes();
    ensure!(bytes <= image.size + LOST_BY_CUT, "{bytes} for {}", image.size);
    until_nothing_left(node)
}

fn an_image_that_lies_has_its_condition_and_leaves_nothing(node: &mut Node) -> Result<()> {
    let site = Site::on(node)?;
    let honest = Image { layers: vec![random_layer("srv/a", 1 << 20, 4)?], config: json!({"Cmd": ["true"]}) };
    let image = site.push_image("app", &honest)?;
    // What one layer is called and what another is.
    let other = random_layer("srv/b", 1000, 5)?;
    let renamed = Rc::new(nodelet_tests::images::Layer {
        tar: honest.layers[0].tar.clone(),
        gzip: honest.layers[0].gzip.clone(),
        diff_id: other.diff_id.clone(),
    });
    type Change = fn(&mut Value);
    let changes: [(Change, &[&str]); 4] = [
        (|it| it["layers"][0]["size"] = 17.into(), &["its manifest says 17"]),
        (|it| it["layers"][0]["digest"] = "sha256:../../etc/passwd".into(), &["not a sha256 digest"]),
        (|it| it["layers"] = json!([]), &["counts 1 layers"]),
        (|it| it["config"]["mediaType"] = "application/vnd.x".into(), &["not a container image"]),
    ];
    for (change, words) in changes {
        site.push_manifest("app", &honest, change)?;
        want(node, &image.reference)?;
        until_failed(node, "to be found out", words)?;
        // The truth is found at the next attempt.
        site.push_image("app", &honest)?;
        until_whole(node, &image)?;
        until_nothing_left(node)?;
    }
    let lie = site.push("lie", vec![renamed])?;
    want(node, &lie.reference)?;
    until_failed(node, "to be found out", &["is damaged", "unpacks to", &other.diff_id])?;
    until_nothing_left(node)
}

fn a_hostile_layer_has_its_condition_and_leaves_nothing(node: &mut Node) -> Result<()> {
    use tar::EntryType::{Block, Char, Directory, Link, Regular, Symlink};
    let site = Site::on(node)?;
    let base = random_layer("srv/a", 1000, 6)?;
    for (name, kind, link, device) in [
        ("../../escaped", Regular, "", (0, 0)),
        ("srv/../../escaped", Regular, "", (0, 0)),
        ("hard", Link, "../../etc/passwd", (0, 0)),
        ("dev/sda", Block, "", (8, 0)),
        ("dev/mem", Char, "", (1, 1)),
    ] {
        let mut layer = LayerBuilder::default();
        layer.raw(name, kind, link, device)?;
        let hostile = site.push("hostile", vec![base.clone(), Rc::new(layer.finish()?)])?;
        want(node, &hostile.reference)?;
        until_failed(node, &format!("{name} to be refused"), &["is refused", name])?;
        until_nothing_left(node).with_context(|| format!("after {name}"))?;
    }
    // Absolute links are what every root filesystem has; what is written through them stays in the layer.
    let mut layer = LayerBuilder::default();
    layer.raw("out", Symlink, "/run", (0, 0))?;
    layer.raw("out/escaped", Directory, "", (0, 0))?;
    layer.raw("/absolute", Regular, "", (0, 0))?;
    let image = site.push("links", vec![base, Rc::new(layer.finish()?)])?;
    want(node, &image.reference)?;
    until_whole(node, &image)?;
    for place in ["/run/escaped", "/absolute"] {
        ensure!(!node.namespaces.path(place).exists(), "a layer reached out to {place}");
    }
    until_nothing_left(node)
}

fn twenty_images_share_their_layers_and_wait_for_no_slow_one(node: &mut Node) -> Result<()> {
    let site = Site::on(node)?;
    let shared = [random_layer("srv/base", 2 << 20, 7)?, random_layer("srv/more", 1 << 20, 8)?];
    // More slow images than there are places for pulls and for layers.
    let slow: Vec<Pushed> = (0..5u64)
        .map(|i| site.push(&format!("slow{i}"), vec![random_layer("srv/slow", 1 << 20, 100 + i)?]))
        .collect::<Result<_>>()?;
    let quick: Vec<Pushed> = (0..20u64)
        .map(|i| {
            site.push(
                &format!("quick{i}"),
                vec![shared[0].clone(), shared[1].clone(), random_layer("srv/own", 1000, i)?],
            )
        })
        .collect::<Result<_>>()?;
    site.proxy.inject("/slow", usize::MAX, Fault::Slow(1 << 10));
    let named = |kind: &'static str, images: &[Pushed]| -> Vec<(String, String)> {
        images.iter().enumerate().map(|(i, image)| (format!("{kind}{i}"), image.reference.clone())).collect()
    };
    let (slow_names, quick_names) = (named("slow", &slow), named("quick", &quick));
    let objects = slow_names.iter().chain(&quick_names).map(|(name, reference)| wish(name, reference).to_string());
    node.apply(&objects.collect::<Vec<_>>().join("\n---\n"))?;
    for (name, _) in &quick_names {
        until_image(node, name, "ready", api::ready)?;
    }
    for (name, _) in &slow_names {
        let image = node.object("images", name)?.context("the slow image")?;
        ensure!(!api::ready(&image), "{name} was not slow: {image:#}");
    }
    let counts = site.proxy.take();
    let mut blobs = std::collections::BTreeMap::new();
    for image in &quick {
        blobs.extend(image.layers.iter().cloned());
    }
    ensure!(blobs.len() == 22, "two shared layers and one of each: {blobs:?}");
    for (digest, size) in &blobs {
        ensure!(counts.blobs.get(digest) == Some(size), "{digest} was not transferred once, whole: {counts:#?}");
    }
    site.proxy.heal();
    site.proxy.cut_at(1);
    for (name, _) in &slow_names {
        until_image(node, name, "ready", api::ready)?;
    }
    for (name, _) in slow_names.iter().chain(&quick_names) {
        node.nodelet(&["delete", "image", name])?;
    }
    until_empty(node)
}
