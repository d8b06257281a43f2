//! Platforms: which of an index's manifests is for this node. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::manifest::{Descriptor, Index};

/// `os/architecture[/variant]` in the vocabulary of Go.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, `arm`, …
    #[serde(default)]
    pub architecture: String,
    /// `v6`, `v7`, `v8`; empty when there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// Puts the parts into the usual spelling: `aarch64` is `arm64`, and `arm64` is `v8` unless it says otherwise.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, implied) = match architecture {
            "x86_64" | "x86-64" => ("amd64", ""),
            "i386" | "i686" | "386" => ("386", ""),
            "aarch64" | "arm64" => ("arm64", "v8"),
            "armhf" => ("arm", "v7"),
            "armel" => ("arm", "v6"),
            "arm" => ("arm", "v7"),
            other => (other, ""),
        };
        let variant = match variant.unwrap_or_default() {
            "" => implied,
            "8" if architecture == "arm64" => "v8",
            // Every 64-bit x86 processor is "v1"; containerd writes nothing for it.
            "v1" if architecture == "amd64" => "",
            given => given,
        };
        let variant = match (architecture, variant) {
            ("arm", "5" | "6" | "7" | "8") => format!("v{variant}"),
            _ => variant.to_owned(),
        };
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant }
    }

    /// The node's.
    pub fn node() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new(std::env::consts::OS, architecture, None)
    }

    /// Reads `os/architecture[/variant]`.
    ///
    /// # Errors
    /// Says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, arch] if !os.is_empty() && !arch.is_empty() => Ok(Self::new(os, arch, None)),
            [os, arch, variant] if !os.is_empty() && !arch.is_empty() && !variant.is_empty() => {
                Ok(Self::new(os, arch, Some(variant)))
            }
            _ => Err(format!("{text:?} is not a platform; expected os/architecture[/variant]")),
        }
    }

    /// How well an image for `offered` suits this platform: 0 is exact, greater is worse, `None` does not run.
    /// A 32-bit ARM processor runs the lower variants too, and an `amd64` image of a higher level may not run.
    pub fn suits(&self, offered: &Platform) -> Option<u32> {
        let offered = Platform::new(&offered.os, &offered.architecture, Some(&offered.variant));
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let level = |variant: &str| variant.strip_prefix('v').and_then(|n| n.parse::<u32>().ok());
        if self.variant == offered.variant {
            return Some(0);
        }
        match (level(&self.variant), level(&offered.variant)) {
            (Some(own), Some(other)) if other < own => Some(own - other),
            (Some(_), None) if offered.variant.is_empty() => Some(100),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        // The one variant that arm64 has is not worth saying.
        let implied = self.architecture == "arm64" && self.variant == "v8";
        if !self.variant.is_empty() && !implied {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// Attestations and signatures are listed with the platform `unknown/unknown`.
fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown" || p.architecture == "unknown")
        || descriptor.annotation("vnd.docker.reference.type").is_some()
}

/// The entries that may be for `wanted`, best first. Entries without platform come last: only their configuration
/// tells what they are for.
pub fn candidates<'a>(index: &'a Index, wanted: &Platform) -> Vec<&'a Descriptor> {
    let mut found: Vec<(u32, &Descriptor)> = index
        .manifests
        .iter()
        .filter(|d| !is_attestation(d))
        .filter_map(|d| match &d.platform {
            Some(p) if !p.os.is_empty() || !p.architecture.is_empty() => wanted.suits(p).map(|rank| (rank, d)),
            _ => Some((u32::MAX, d)),
        })
        .collect();
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, d)| d).collect()
}

/// The platforms of an index for an error message: `linux/amd64, linux/arm/v7`.
pub fn available(index: &Index) -> String {
    let mut names: Vec<String> = index
        .manifests
        .iter()
        .filter(|d| !is_attestation(d))
        .filter_map(|d| d.platform.as_ref())
        .map(|p| Platform::new(&p.os, &p.architecture, Some(&p.variant)).to_string())
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::manifest::Digest;

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let mut d = Descriptor::new("", Digest::of(&[i as u8]), i as u64);
                let mut parts = text.split('/').map(str::to_owned);
                d.platform = (!text.is_empty()).then(|| Platform {
                    os: parts.next().unwrap(),
                    architecture: parts.next().unwrap(),
                    variant: parts.next().unwrap_or_default(),
                });
                d
            })
            .collect();
        Index { schema_version: 2, media_type: String::new(), manifests }
    }

    #[test]
    fn the_best_variant_wins() {
        let all =
            index(&["unknown/unknown", "linux/arm/v5", "linux/arm/v6", "linux/arm64", "linux/amd64", "linux/386"]);
        let best = |wanted: &str| candidates(&all, &Platform::parse(wanted).unwrap()).first().map(|d| d.size);
        assert_eq!(best("linux/amd64"), Some(4));
        assert_eq!(best("linux/arm/v7"), Some(2));
        assert_eq!(best("linux/arm"), Some(2));
        assert_eq!(best("linux/arm/v5"), Some(1));
        assert_eq!(best("linux/arm64/v8"), Some(3));
        assert_eq!(best("linux/aarch64"), Some(3));
        assert_eq!(best("linux/s390x"), None);
        assert_eq!(available(&all), "linux/386, linux/amd64, linux/arm/v5, linux/arm/v6, linux/arm64");
    }

    #[test]
    fn entries_without_platform_are_a_last_resort() {
        let all = index(&["", "linux/amd64"]);
        let order: Vec<u64> =
            candidates(&all, &Platform::parse("linux/amd64").unwrap()).iter().map(|d| d.size).collect();
        assert_eq!(order, [1, 0]);
    }

    #[test]
    fn platforms_are_parsed_strictly() {
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux//v7"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Platform::parse("linux/x86_64").unwrap().to_string(), "linux/amd64");
        assert_eq!(Platform::node().os, "linux");
    }
}
