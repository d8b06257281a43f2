use proptest::prelude::*;

use super::*;

fn quantity(text: &str) -> Quantity {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn bytes_are_exact() {
    let cases = [
        ("0", 0),
        ("1", 1),
        ("+1", 1),
        ("1024", 1024),
        ("1Ki", 1024),
        ("64Mi", 64 << 20),
        ("1.5Gi", 3 << 29),
        (".5Ki", 512),
        ("5.", 5),
        ("1k", 1000),
        ("2G", 2_000_000_000),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1e-3", 1),
        ("1E", 1_000_000_000_000_000_000),
        ("12.5e1", 125),
        ("0.1Gi", 107_374_183),
        ("1000m", 1),
        ("1500m", 2),
        ("15.999999999999999999Ei", u64::MAX),
        ("18446744073709551615", u64::MAX),
        ("0e999999999999", 0),
        ("0.000Ei", 0),
    ];
    for (text, bytes) in cases {
        if text == "1e-3" {
            assert_eq!(quantity(text).bytes(), Err(QuantityError::LessThanOneByte(text.to_owned())));
        } else {
            assert_eq!(quantity(text).bytes(), Ok(bytes), "{text}");
        }
    }
}

#[test]
fn cpu_is_exact_to_a_thousandth_and_rounded_up() {
    let cases = [
        ("0", 0),
        ("500m", 500),
        ("0.5", 500),
        ("1.5", 1500),
        ("2", 2000),
        ("100u", 1),
        ("1n", 1),
        ("1001u", 2),
        ("1k", 1_000_000),
    ];
    for (text, milli) in cases {
        assert_eq!(quantity(text).milli_cpu(), Ok(milli), "{text}");
    }
}

#[test]
fn refusals_name_what_was_expected() {
    for text in [
        "", "m", "Mi", ".", "1.2.3", "1 Mi", " 1", "1MiB", "1mi", "1Km", "e3", "1e", "1e+", "1e1.5", "--1", "0x10", "١",
    ] {
        let error = text.parse::<Quantity>().unwrap_err();
        assert_eq!(error, QuantityError::Notation(text.to_owned()));
        assert!(error.to_string().contains("expected a number with an optional suffix"), "{error}");
    }
    assert_eq!("-1Mi".parse::<Quantity>().unwrap_err().to_string(), "\"-1Mi\" is negative: expected zero or more");
    assert!("1e30".parse::<Quantity>().unwrap_err().to_string().ends_with("is too large: expected at most 1e29"));
    assert!("1e99999999999".parse::<Quantity>().unwrap_err().to_string().contains("too large"));
    assert!(quantity("16Ei").bytes().unwrap_err().to_string().contains("at most 18446744073709551615 bytes"));
    let milli = quantity("128m").bytes().unwrap_err().to_string();
    assert!(milli.contains("less than one byte") && milli.contains("the suffix m is a thousandth"), "{milli}");
}

#[test]
fn numbers_and_strings_are_read_and_strings_written() {
    let read = |json: &str| serde_json::from_str::<Quantity>(json);
    assert_eq!(read("5").unwrap(), quantity("5"));
    assert_eq!(read("0.5").unwrap(), quantity("500m"));
    assert_eq!(read("\"64Mi\"").unwrap().as_str(), "64Mi");
    assert_eq!(serde_json::to_string(&read("5").unwrap()).unwrap(), "\"5\"");
    assert!(read("-5").unwrap_err().to_string().contains("negative"));
    assert!(read("\"5 apples\"").unwrap_err().to_string().contains("is no quantity"));
    assert!(read("true").unwrap_err().to_string().contains("expected a quantity such as"));
}

#[test]
fn equality_is_of_amounts() {
    assert_eq!(quantity("1Gi"), quantity("1024Mi"));
    assert_eq!(quantity("0.1"), quantity("100m"));
    assert_ne!(quantity("1G"), quantity("1Gi"));
    assert!(quantity("1G") < quantity("1Gi"));
    assert_eq!(Quantity::from_bytes(64 << 20).as_str(), "64Mi");
    assert_eq!(Quantity::from_bytes(1500).as_str(), "1500");
    assert_eq!(Quantity::from_milli_cpu(1500).as_str(), "1500m");
    assert_eq!(Quantity::from_milli_cpu(2000).as_str(), "2");
}

/// The suffixes with what they multiply by, as a fraction.
const SUFFIXES: &[(&str, u128, u128)] = &[
    ("n", 1, 1_000_000_000),
    ("u", 1, 1_000_000),
    ("m", 1, 1_000),
    ("", 1, 1),
    ("k", 1_000, 1),
    ("M", 1_000_000, 1),
    ("G", 1_000_000_000, 1),
    ("T", 1_000_000_000_000, 1),
    ("e3", 1_000, 1),
    ("E-2", 1, 100),
    ("Ki", 1 << 10, 1),
    ("Mi", 1 << 20, 1),
    ("Gi", 1 << 30, 1),
    ("Ti", 1 << 40, 1),
];

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,40}") {
        let _ = text.parse::<Quantity>();
    }

    #[test]
    fn no_quantity_panics(text in r"[+-]?[0-9]{0,45}\.?[0-9]{0,45}([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,12})?") {
        if let Ok(quantity) = text.parse::<Quantity>() {
            let _ = (quantity.bytes(), quantity.milli_cpu(), quantity.count());
        }
    }

    /// Against plain arithmetic with fractions.
    #[test]
    fn value_is_that_of_arithmetic(whole in 0u64..10_000_000, thousandths in 0u64..1000, suffix in 0..SUFFIXES.len()) {
        let (suffix, multiply, divide) = SUFFIXES[suffix];
        let parsed = quantity(&format!("{whole}.{thousandths:03}{suffix}"));
        let thousand = (u128::from(whole) * 1000 + u128::from(thousandths)) * multiply;
        prop_assert_eq!(parsed.count().ok(), u64::try_from(thousand.div_ceil(1000 * divide)).ok());
        prop_assert_eq!(parsed.milli_cpu().ok(), u64::try_from(thousand.div_ceil(divide)).ok());
    }

    #[test]
    fn bytes_come_back(bytes: u64) {
        let quantity = Quantity::from_bytes(bytes);
        prop_assert_eq!(quantity.bytes(), Ok(bytes));
        let parsed = quantity.as_str().parse::<Quantity>().unwrap();
        prop_assert_eq!(&parsed, &quantity);
    }

    #[test]
    fn milli_cpus_come_back(milli: u64) {
        let quantity = Quantity::from_milli_cpu(milli);
        prop_assert_eq!(quantity.milli_cpu(), Ok(milli));
        prop_assert_eq!(quantity.as_str().parse::<Quantity>().unwrap(), quantity);
    }

    /// The pattern that the API server applies and the parser agree, but for amounts beyond bounds.
    #[test]
    fn schema_and_parser_agree(text in r"[+]?[0-9]{0,3}\.?[0-9]{0,3}([KMGTPEnumk]?i?|[eE][+-]?[0-9]{0,1})") {
        let pattern = regex::Regex::new(PATTERN).unwrap();
        prop_assert_eq!(text.parse::<Quantity>().is_ok(), pattern.is_match(&text), "{}", text);
    }

    #[test]
    fn json_comes_back(bytes: u64) {
        let quantity = Quantity::from_bytes(bytes);
        let json = serde_json::to_string(&quantity).unwrap();
        let again = serde_json::from_str::<Quantity>(&json).unwrap();
        prop_assert_eq!(again.as_str(), quantity.as_str());
    }
}
