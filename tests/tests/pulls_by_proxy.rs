//! Registries behind the proxy of a site: the agent takes it from its environment.

use std::ffi::OsStr;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::forward_proxy::ForwardProxy;
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;
use serde_json::json;

nodelet_tests::on_containerd!(registries_are_reached_through_the_proxy_of_the_environment);

/// An authority, and a certificate for `secure.test` by it.
const CERTIFICATES: &str = "set -e; cd /run
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=authority
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout tls.key -out tls.csr -subj /CN=secure.test
printf 'subjectAltName=DNS:secure.test\nbasicConstraints=CA:FALSE\n' >tls.ext
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out tls.crt -days 2 -extfile tls.ext";

fn registries_are_reached_through_the_proxy_of_the_environment(node: &mut Node) -> Result<()> {
    node.namespaces.run(["sh", "-c", CERTIFICATES])?;
    let storage = node.images.registry.canonicalize()?;
    // The same images by HTTPS, and by HTTP at an address that is no loopback's.
    node.namespaces.run(["ip", "address", "add", "10.99.0.1/32", "dev", "lo"])?;
    for (name, address, tls) in [
        ("secure", "127.0.0.1:5003", "tls: {certificate: /run/tls.crt, key: /run/tls.key}"),
        ("direct", "10.99.0.1:5004", ""),
    ] {
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nhttp:\n  addr: '{address}'\n  {tls}\n\
             storage:\n  filesystem: {{rootdirectory: '{}'}}\n  maintenance: {{readonly: {{enabled: true}}}}\n",
            storage.display()
        );
        let file = format!("/run/{name}.yml");
        fs::write(node.namespaces.path(&file), config)?;
        let words = ["docker-registry", "serve", &file].map(OsStr::new);
        let _until_the_end = node.namespaces.spawn(&words, &node.logs.join(name))?;
    }
    until(PATIENCE, "the registries", || {
        let script = "curl -sfk https://127.0.0.1:5003/v2/ && curl -sf http://10.99.0.1:5004/v2/";
        Ok(node.namespaces.run(["sh", "-c", script]).ok())
    })?;
    for (host, text) in [
        ("plain.test:5000", "server = \"http://plain.test:5000\"\n"),
        ("secure.test:5003", "server = \"https://secure.test:5003\"\nca = \"/run/ca.crt\"\n"),
        ("10.99.0.1:5004", "server = \"http://10.99.0.1:5004\"\n"),
    ] {
        let directory = node.namespaces.path("/run/certs.d").join(host);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("hosts.toml"), text)?;
    }

    let proxy = ForwardProxy::start_in(&node.namespaces)?;
    node.stop_agent()?;
    let config = fs::read_to_string(node.config())? + "images: {registriesDir: /run/certs.d}\n";
    fs::write(node.config(), config)?;
    for name in ["HTTP_PROXY", "HTTPS_PROXY"] {
        node.environment.push(format!("{name}=http://127.0.0.1:{}", proxy.port));
    }
    node.environment.push("NO_PROXY=10.99.0.0/16,elsewhere.test".to_owned());
    node.start_agent()?;

    for (name, host) in [
        ("plain", "plain.test:5000"),
        ("secure", "secure.test:5003"),
        ("direct", "10.99.0.1:5004"),
        ("own", "127.0.0.1:5000"),
    ] {
        let object = json!({
            "apiVersion": "nodelet.dev/v1alpha1", "kind": "Image", "metadata": {"name": name},
            "spec": {"reference": format!("{host}/shop/busybox:1")},
        });
        node.apply(&object.to_string())?;
        until(PATIENCE, &format!("the image of {host}"), || Ok(node.object("images", name)?.filter(api::ready)))
            .with_context(|| format!("{:#?}\n{}", node.object("images", name), node.explain()))?;
    }
    let asked = proxy.asked();
    ensure!(asked.contains(&"GET plain.test:5000".to_owned()), "{asked:?}");
    ensure!(asked.contains(&"CONNECT secure.test:5003".to_owned()), "{asked:?}");
    let spared = |line: &String| !line.contains("10.99.0.1") && !line.contains("127.0.0.1");
    ensure!(asked.iter().all(spared), "what NO_PROXY names, and loopback, are reached directly: {asked:?}");
    Ok(())
}
