use serde_json::{Value, json};

use super::*;

/// Files in `etc` and `run`, and what asking for the names gives, as JSON, or the message.
fn asked(files: &[(&str, Value)], names: &[&str]) -> Result<Value, String> {
    let dir = tempfile::tempdir().unwrap();
    let directories = ["etc", "run", "absent"].map(|name| dir.path().join(name));
    for (name, content) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        std::fs::write(path, text.replace("$DIR", &dir.path().display().to_string())).unwrap();
    }
    let directories: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
    let replaced = |text: String| text.replace(&dir.path().display().to_string(), "$DIR");
    let edits = resolve(&directories, names).map_err(|error| replaced(error.to_string()))?;
    let mut spec = Spec::default();
    let mut process = Process::default();
    process.set_env(Some(vec!["PATH=/bin".into(), "MODEL=none".into()]));
    spec.set_process(Some(process));
    spec.set_linux(Some(Linux::default()));
    spec.set_mounts(Some(Vec::new()));
    edits.apply(&mut spec);
    Ok(serde_json::from_str(&replaced(serde_json::to_string(&spec).unwrap())).unwrap())
}

fn gpu() -> Value {
    json!({
        "cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
        "containerEdits": {
            "env": ["DRIVER=1"],
            "mounts": [{"hostPath": "/etc/passwd", "containerPath": "/lib/driver.so", "options": ["ro", "nosuid"]}],
            "hooks": [{"hookName": "createContainer", "path": "/bin/sh", "args": ["sh", "-c", "true"], "timeout": 5}],
        },
        "devices": [
            {"name": "0", "containerEdits": {
                "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "rw"}],
                "env": ["MODEL=first"], "additionalGids": [0, 44],
            }},
            {"name": "1", "containerEdits": {
                "deviceNodes": [{"path": "/dev/gpu1", "type": "b", "major": 8, "minor": 16, "fileMode": 0o640, "uid": 7}],
            }},
        ],
    })
}

#[test]
fn a_container_gets_what_its_devices_need_and_their_file_once() {
    let spec = asked(&[("etc/gpu.json", gpu())], &["vendor.com/gpu=0", "vendor.com/gpu=1"]).unwrap();
    assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "MODEL=first", "DRIVER=1"]));
    assert_eq!(spec["process"]["user"]["additionalGids"], json!([44]));
    let devices = &spec["linux"]["devices"];
    assert_eq!((&devices[0]["path"], &devices[0]["major"]), (&json!("/dev/gpu0"), &json!(1)));
    assert_eq!(
        devices[1],
        json!({"path": "/dev/gpu1", "type": "b", "major": 8, "minor": 16, "fileMode": 0o640, "uid": 7})
    );
    let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
    let last = [
        json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}),
        json!({"allow": true, "type": "b", "major": 8, "minor": 16, "access": "rwm"}),
    ];
    assert!(rules.ends_with(&last), "{rules:?}");
    let mount = json!({"destination": "/lib/driver.so", "source": "/etc/passwd", "type": "bind",
        "options": ["ro", "nosuid", "rbind"]});
    assert_eq!(spec["mounts"], json!([mount]));
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", "true"], "timeout": 5});
    assert_eq!(spec["hooks"]["createContainer"], json!([hook]));
}

#[test]
fn the_later_directory_wins_and_yaml_is_read_too() {
    let yaml = "cdiVersion: 1.0.0\nkind: vendor.com/gpu\ndevices:\n- name: '0'\n  containerEdits: {env: [MODEL=new]}\n";
    let spec = asked(&[("etc/gpu.json", gpu()), ("run/gpu.yaml", yaml.into())], &["vendor.com/gpu=0"]).unwrap();
    assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "MODEL=new"]));
    // What it does not have is still had from the other.
    let files = [("etc/gpu.json", gpu()), ("run/gpu.yaml", yaml.into()), ("run/broken.json", "{".into())];
    assert!(asked(&files, &["vendor.com/gpu=1"]).is_ok());
}

#[test]
fn what_cannot_be_is_told_with_file_and_device() {
    let with = |edits: Value| json!({"cdiVersion": "0.6.0", "kind": "v.c/d", "devices": [{"name": "x", "containerEdits": edits}]});
    let node = |more: Value| with(json!({"deviceNodes": [more]}));
    for (file, message) in [
        (
            json!({"cdiVersion": "0.6.0", "kind": "other.com/d", "devices": []}),
            "no file in $DIR/etc or $DIR/run or $DIR/absent has it",
        ),
        ("{".into(), "no file in $DIR/etc or $DIR/run or $DIR/absent has it; cannot be read: $DIR/etc/a.json: EOF"),
        (
            json!({"cdiVersion": "2.0.0", "kind": "v.c/d", "devices": []}),
            "$DIR/etc/a.json: cdiVersion 2.0.0 is none of 0.3 to 1.1",
        ),
        (with(json!({"netDevices": []})), "$DIR/etc/a.json: unknown field `netDevices`"),
        (with(json!({"env": ["X"]})), "$DIR/etc/a.json: env \"X\" has no value"),
        (node(json!({"path": "/dev/absent"})), "$DIR/etc/a.json: /dev/absent: No such file"),
        (
            node(json!({"path": "/dev/x", "hostPath": "/etc/passwd"})),
            "$DIR/etc/a.json: /etc/passwd is not a device file",
        ),
        (node(json!({"path": "dev/x"})), "$DIR/etc/a.json: dev/x must be an absolute path"),
        (node(json!({"path": "/dev/null", "type": "b"})), "$DIR/etc/a.json: /dev/null is not of the declared type"),
        (node(json!({"path": "/dev/null", "permissions": "x"})), "$DIR/etc/a.json: /dev/null: permissions \"x\""),
        (
            with(json!({"mounts": [{"hostPath": "$DIR/no", "containerPath": "/x"}]})),
            "$DIR/etc/a.json: mount of $DIR/no: No such",
        ),
        (
            with(json!({"hooks": [{"hookName": "prestart", "path": "$DIR/no"}]})),
            "$DIR/etc/a.json: hook $DIR/no: No such",
        ),
        (
            with(json!({"hooks": [{"hookName": "later", "path": "/bin/sh"}]})),
            "$DIR/etc/a.json: unknown variant `later`",
        ),
    ] {
        let error = asked(&[("etc/a.json", file)], &["v.c/d=x"]).unwrap_err();
        assert!(error.starts_with(&format!("devices: v.c/d=x: {message}")), "{error}");
    }
    let twice = asked(&[("etc/a.json", gpu()), ("etc/b.json", gpu())], &["vendor.com/gpu=0"]).unwrap_err();
    assert_eq!(twice, "devices: vendor.com/gpu=0: is in $DIR/etc/a.json and in $DIR/etc/b.json");
}
