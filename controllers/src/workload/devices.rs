//! From a container's devices to what it gets: files, or what their vendors say.

use nodelet_crds::workload::Container;
use nodelet_crds::workload::container::Device;
use nodelet_drivers::runtime::DeviceWish;

use crate::invalid::Invalid;

/// The devices, each file at a path of its own.
pub fn devices(path: &str, container: &Container) -> Result<Vec<DeviceWish>, Invalid> {
    let mut taken: Vec<&str> = Vec::new();
    let mut wishes = Vec::new();
    for (index, device) in container.devices.iter().enumerate() {
        let path = format!("{path}.devices[{index}]");
        if !device.path.starts_with('/') {
            wishes.push(named(&path, device)?);
            continue;
        }
        let container_path = device.container_path.as_deref().unwrap_or(&device.path);
        let problem = |what: String| Err(Invalid::field(format!("{path}.containerPath"), what));
        if container_path.split('/').any(|part| part == "..") {
            return problem("must not contain `..`".to_owned());
        }
        if taken.contains(&container_path) {
            return problem(format!("{container_path} is another device's"));
        }
        taken.push(container_path);
        wishes.push(DeviceWish::File {
            path: device.path.clone(),
            container_path: container_path.to_owned(),
            permissions: device.permissions.clone().unwrap_or_else(|| "rwm".to_owned()),
        });
    }
    Ok(wishes)
}

/// A device whose vendor says what the container gets.
fn named(path: &str, device: &Device) -> Result<DeviceWish, Invalid> {
    let set = [("containerPath", &device.container_path), ("permissions", &device.permissions)];
    if let Some((field, _)) = set.into_iter().find(|(_, value)| value.is_some()) {
        let message = format!("is for device files: what {} is, its vendor's file says", device.path);
        return Err(Invalid::field(format!("{path}.{field}"), message));
    }
    Ok(DeviceWish::Named { name: device.path.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: serde_json::Value) -> Result<Vec<DeviceWish>, Invalid> {
        let container = serde_json::json!({"name": "c", "image": "i", "devices": list});
        devices("spec.containers[0]", &serde_json::from_value(container).unwrap())
    }

    #[test]
    fn a_device_is_given_whole_under_its_own_name_unless_it_says_otherwise() {
        let wishes = of(serde_json::json!([
            {"path": "/dev/ttyUSB0"}, {"path": "/dev/ttyUSB1", "containerPath": "/dev/modem", "permissions": "r"},
            {"path": "vendor.com/gpu=0"},
        ]));
        let expected = [("/dev/ttyUSB0", "/dev/ttyUSB0", "rwm"), ("/dev/ttyUSB1", "/dev/modem", "r")];
        let wish = |(path, container_path, permissions): (&str, &str, &str)| DeviceWish::File {
            path: path.to_owned(),
            container_path: container_path.to_owned(),
            permissions: permissions.to_owned(),
        };
        let named = DeviceWish::Named { name: "vendor.com/gpu=0".to_owned() };
        assert_eq!(wishes.unwrap(), expected.map(wish).into_iter().chain([named]).collect::<Vec<_>>());
    }

    #[test]
    fn two_devices_cannot_be_at_one_path_nor_one_outside() {
        for list in [
            serde_json::json!([{"path": "/dev/a"}, {"path": "/dev/b", "containerPath": "/dev/a"}]),
            serde_json::json!([{"path": "/dev/a"}, {"path": "/dev/b", "containerPath": "/dev/../../x"}]),
        ] {
            let error = of(list).unwrap_err();
            assert!(error.message.starts_with("spec.containers[0].devices[1].containerPath: "), "{}", error.message);
        }
        let error = of(serde_json::json!([{"path": "vendor.com/gpu=0", "permissions": "r"}])).unwrap_err();
        assert!(error.message.starts_with("spec.containers[0].devices[0].permissions: is for device files"));
    }
}
