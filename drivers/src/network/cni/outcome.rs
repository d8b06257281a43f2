//! What the result of a CNI list says about an attachment. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::network::link::Mac;

/// The addresses of the link inside.
pub(super) fn addresses(result: &Value, ifname: &str) -> Vec<IpNet> {
    let interfaces = list(result, "interfaces");
    let is_ours = |ip: &&Value| match ip.get("interface").and_then(Value::as_u64) {
        Some(index) => usize::try_from(index)
            .ok()
            .and_then(|index| interfaces.get(index))
            .is_none_or(|interface| is_inside(interface) && text(interface, "name") == ifname),
        None => true,
    };
    list(result, "ips").iter().filter(is_ours).filter_map(|ip| text(ip, "address").parse().ok()).collect()
}

/// The hardware address of the link inside, if it is told.
pub(super) fn mac(result: &Value, ifname: &str) -> Option<Mac> {
    let interfaces = list(result, "interfaces");
    let inside = interfaces.iter().find(|interface| is_inside(interface) && text(interface, "name") == ifname)?;
    let bytes: Vec<u8> =
        text(inside, "mac").split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// Name servers that the network has.
pub(super) fn resolvers(result: &Value) -> Vec<IpAddr> {
    let servers = result.get("dns").map(|dns| list(dns, "nameservers")).unwrap_or_default();
    servers.iter().filter_map(|server| server.as_str()?.parse().ok()).collect()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn is_inside(interface: &Value) -> bool {
    !text(interface, "sandbox").is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read() {
        let result = serde_json::json!({
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "mac": "0a:00:00:00:00:01", "sandbox": "/x"}],
            "ips": [{"address": "10.1.0.2/24", "interface": 2}, {"address": "10.9.0.1/24", "interface": 0}, {"address": "x"},
                {"address": "fd00::2/64"}],
            "dns": {"nameservers": ["10.1.0.1", "x"]},
        });
        let found: Vec<String> = addresses(&result, "eth0").iter().map(IpNet::to_string).collect();
        assert_eq!(found, ["10.1.0.2/24", "fd00::2/64"]);
        assert_eq!(mac(&result, "eth0"), Some([10, 0, 0, 0, 0, 1]));
        assert_eq!(resolvers(&result), ["10.1.0.1".parse::<IpAddr>().unwrap()]);
        for nothing in [Value::Null, serde_json::json!({"ips": 1, "interfaces": "x", "dns": []})] {
            assert!(addresses(&nothing, "eth0").is_empty() && mac(&nothing, "eth0").is_none());
        }
    }
}
