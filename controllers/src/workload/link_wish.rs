//! From what a Workload says of an attachment's link to the driver's wish.

use nodelet_crds::quantity::Quantity;
use nodelet_crds::workload::NetworkAttachment;
use nodelet_drivers::network::LinkWish;

use crate::invalid::Invalid;

/// Checks hardware address and bandwidth, and whether it may speak for others, of the attachment at `path`.
pub fn link_wish(path: &str, attachment: &NetworkAttachment) -> Result<LinkWish, Invalid> {
    let mac = attachment.mac.as_deref().map(parse_mac).transpose();
    let mac = mac.map_err(|message| Invalid::field(format!("{path}.mac"), message))?;
    let bandwidth = attachment.bandwidth.clone().unwrap_or_default();
    let rate = |name: &str, quantity: Option<&Quantity>| -> Result<Option<u64>, Invalid> {
        let Some(quantity) = quantity else { return Ok(None) };
        let path = format!("{path}.bandwidth.{name}");
        let rate = quantity.count().map_err(|error| Invalid::field(path.clone(), error))?;
        if rate < 1000 {
            return Err(Invalid::field(path, "is less than 1k, a thousand bits per second"));
        }
        Ok(Some(rate))
    };
    Ok(LinkWish {
        mac,
        ingress: rate("ingress", bandwidth.ingress.as_ref())?,
        egress: rate("egress", bandwidth.egress.as_ref())?,
        speaks_for_others: attachment.anti_spoofing == Some(false),
    })
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("{text:?} is not a hardware address such as 02:00:00:00:00:01");
    let bytes = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2))
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(wrong)?;
    let mac: [u8; 6] = bytes.try_into().map_err(|_| wrong())?;
    if mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(format!("{text} is the address of many or of nobody: its first byte must be even"));
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(value: serde_json::Value) -> Result<LinkWish, String> {
        let attachment = serde_json::from_value(value).unwrap();
        link_wish("spec.networks[0]", &attachment).map_err(|invalid| invalid.message)
    }

    #[test]
    fn links_are_as_they_are_asked_for() {
        let asked = serde_json::json!({
            "name": "n", "mac": "02:00:00:00:00:0A", "bandwidth": {"ingress": "10M", "egress": "500k"},
            "antiSpoofing": false,
        });
        let expected = LinkWish {
            mac: Some([2, 0, 0, 0, 0, 10]),
            ingress: Some(10_000_000),
            egress: Some(500_000),
            speaks_for_others: true,
        };
        assert_eq!(wish(asked), Ok(expected));
        for usual in [serde_json::json!({"name": "n"}), serde_json::json!({"name": "n", "antiSpoofing": true})] {
            assert_eq!(wish(usual), Ok(LinkWish::default()));
        }
        for (wrong, expected) in [
            (serde_json::json!({"name": "n", "mac": "02:00"}), "is not a hardware address"),
            (serde_json::json!({"name": "n", "mac": "03:00:00:00:00:01"}), "must be even"),
            (serde_json::json!({"name": "n", "mac": "00:00:00:00:00:00"}), "must be even"),
            (serde_json::json!({"name": "n", "bandwidth": {"egress": "8"}}), "less than 1k"),
        ] {
            let message = wish(wrong).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }
}
