//! Networks that plugins make by a configuration of the node (Container Network Interface, specification 1.1).
//!
//! The list of plugins is read when a sandbox is attached and kept on record with their result, so that it leaves by the
//! very configuration that it came by, whatever became of the file. Plugins run beside the worker: they are programs and
//! may take seconds. Everything about the node is theirs: addresses, links, rules, ports.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::book::{Place, mac_text, wanted_mac};
use super::link::Links;
use super::netns::Netns;
use super::{AttachSpec, Error};
use crate::ids::NetworkKey;

mod list;
mod node;
mod outcome;
mod plugin;
#[cfg(test)]
pub(super) mod tests;

use self::list::{List, program};
pub(super) use self::node::{Attaching, unplug};
pub use self::plugin::PluginError;
use self::plugin::{Call, run, versions};

/// Where plugins are looked for by default.
pub const PLUGIN_DIRS: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];

/// A CNI configuration of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniConfig {
    /// The configuration list.
    pub config: PathBuf,
    /// Directories with plugins, in the order in which they are looked through.
    pub plugin_dirs: Vec<PathBuf>,
}

/// What plugins did for a sandbox, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plugged {
    list: List,
    plugin_dirs: Vec<PathBuf>,
    /// Their result; without one they may have been at work when we ended.
    result: Option<Value>,
}

impl Plugged {
    fn read(network: &NetworkKey, source: &CniConfig) -> Result<Self, Error> {
        let list = List::read(&source.config).map_err(|wrong| Error::Unsupported {
            network: network.clone(),
            message: format!("{} {wrong}", source.config.display()),
        })?;
        Ok(Self { list, plugin_dirs: source.plugin_dirs.clone(), result: None })
    }

    /// The hardware address inside, as far as the plugins told it.
    pub(super) fn mac(&self, ifname: &str) -> Option<super::link::Mac> {
        self.result.as_ref().and_then(|result| outcome::mac(result, ifname))
    }

    /// Name servers that the plugins named.
    pub(super) fn resolvers(&self) -> Vec<std::net::IpAddr> {
        self.result.as_ref().map(outcome::resolvers).unwrap_or_default()
    }

    /// Checks that each plugin is there and speaks the list's version; returns whether all know `GC`.
    async fn check_plugins(&self, network: &NetworkKey) -> Result<bool, Error> {
        let mut all_collect = self.list.has_gc();
        for plugin in &self.list.plugins {
            let failed = |source| failure(network, plugin, "VERSION", source);
            let spoken = versions(program(plugin), &self.plugin_dirs).await.map_err(failed)?;
            if !spoken.contains(&self.list.version) {
                return Err(failed(PluginError::Version { spoken, wanted: self.list.version.clone() }));
            }
            all_collect &= spoken.iter().any(|version| version == "1.1.0");
        }
        Ok(all_collect)
    }

    /// `ADD`: each plugin in turn is given the result of the one before.
    async fn add(&self, spec: &AttachSpec) -> Result<Value, Error> {
        let capabilities = Self::capabilities(spec);
        let mut result = None;
        for plugin in &self.list.plugins {
            let input = self.list.input(plugin, &capabilities, result.as_ref());
            let answer = self.run("ADD", spec, plugin, input).await?;
            crate::failpoint::passed("adding by a CNI plugin");
            result = Some(answer);
        }
        Ok(result.unwrap_or_default())
    }

    /// `CHECK`: each plugin in turn is given the list's result.
    async fn check(&self, spec: &AttachSpec) -> Result<(), Error> {
        let Some(result) = self.result.as_ref().filter(|_| self.list.has_check()) else { return Ok(()) };
        let capabilities = Self::capabilities(spec);
        for plugin in &self.list.plugins {
            let input = self.list.input(plugin, &capabilities, Some(result));
            self.run("CHECK", spec, plugin, input).await?;
        }
        Ok(())
    }

    /// `DEL`, in the opposite order. What is gone already is success, by the specification.
    async fn del(&self, spec: &AttachSpec) -> Result<(), Error> {
        let capabilities = Self::capabilities(spec);
        let result = self.result.as_ref().filter(|_| self.list.tells_result_on_removal());
        for plugin in self.list.plugins.iter().rev() {
            let input = self.list.input(plugin, &capabilities, result);
            self.run("DEL", spec, plugin, input).await?;
            crate::failpoint::passed("removing by a CNI plugin");
        }
        Ok(())
    }

    /// `GC`: plugins forget all sandboxes but these.
    async fn collect(&self, network: &NetworkKey, valid: &[AttachSpec]) -> Result<(), Error> {
        let entry = |spec: &AttachSpec| json!({"containerID": spec.sandbox.as_str(), "ifname": spec.ifname.as_str()});
        let valid: Vec<Value> = valid.iter().map(entry).collect();
        for plugin in &self.list.plugins {
            let mut input = self.list.input(plugin, &Map::new(), None);
            input.insert("cni.dev/valid-attachments".to_owned(), Value::Array(valid.clone()));
            let call = Call { command: "GC", container: "", netns: None, ifname: "", dirs: &self.plugin_dirs };
            run(program(plugin), &call, &Value::Object(input))
                .await
                .map_err(|source| failure(network, plugin, "GC", source))?;
        }
        Ok(())
    }

    async fn run(
        &self,
        command: &'static str,
        spec: &AttachSpec,
        plugin: &Map<String, Value>,
        input: Map<String, Value>,
    ) -> Result<Value, Error> {
        let call = Call {
            command,
            container: spec.sandbox.as_str(),
            netns: Some(spec.netns.as_path()).filter(|path| path.exists()),
            ifname: spec.ifname.as_str(),
            dirs: &self.plugin_dirs,
        };
        let answer = run(program(plugin), &call, &Value::Object(input)).await;
        answer.map_err(|source| failure(&spec.network, plugin, command, source))
    }

    /// Refuses wishes that no plugin knows how to fulfil.
    fn check_wishes(&self, spec: &AttachSpec) -> Result<(), Error> {
        if spec.link.mac.is_some() && !self.list.has_capability("mac") || spec.link.is_limited() {
            return Err(Error::Unsupported {
                network: spec.network.clone(),
                message: "no plugin of the list has the capability mac, or limits are asked for, which are the plugins' business"
                    .to_owned(),
            });
        }
        match spec.addresses.first() {
            Some(first) if !self.list.has_capability("ips") => Err(Error::Address {
                network: spec.network.clone(),
                address: *first,
                reason: "cannot be asked for: no plugin of the list has the capability ips".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// What we ask for beyond the list, for plugins that know how.
    fn capabilities(spec: &AttachSpec) -> Map<String, Value> {
        let mut capabilities = Map::new();
        let mac = spec.link.mac.unwrap_or_else(|| wanted_mac(spec, spec.addresses.first().copied()));
        capabilities.insert("mac".to_owned(), json!(mac_text(mac)));
        if !spec.addresses.is_empty() {
            let prefix = |ip: &std::net::IpAddr| if ip.is_ipv4() { 32 } else { 128 };
            let ips: Vec<String> = spec.addresses.iter().map(|ip| format!("{ip}/{}", prefix(ip))).collect();
            capabilities.insert("ips".to_owned(), json!(ips));
        }
        capabilities
    }
}

fn failure(network: &NetworkKey, plugin: &Map<String, Value>, command: &'static str, source: PluginError) -> Error {
    Error::Plugin { network: network.clone(), plugin: program(plugin).to_owned(), command, source }
}

/// Whether the link inside is there, up, and has the addresses that the plugins told.
pub(super) fn is_sound(place: &Place) -> bool {
    let Some(Plugged { result: Some(_), .. }) = &place.plugged else { return false };
    let look = |netns: &Path| -> io::Result<bool> {
        Netns::open(netns)?.run(|| {
            let mut links = Links::open()?;
            let other = |refused: super::netlink::Refused| io::Error::from_raw_os_error(refused.errno);
            let Some(link) = links.find(place.spec.ifname.as_str()).map_err(other)? else { return Ok(false) };
            let held = links.addresses().map_err(other)?;
            Ok(link.up && place.addresses.iter().all(|address| held.contains(&(link.index, *address))))
        })
    };
    look(&place.spec.netns).unwrap_or(false)
}
