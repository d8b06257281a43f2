//! Quantities as Kubernetes writes them: `500m`, `64Mi`, `1.5`, `1e3`.
//!
//! A [`Quantity`] that exists is valid and not negative. It keeps the text it was written as, and its value exactly
//! (in billionths, the finest the notation has). What it counts is known only where it is used, so the conversion to
//! bytes or thousandths of a CPU happens there.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Billionths in one.
const NANO: u128 = 1_000_000_000;

/// The notation as the schema states it; a superset is parsed nowhere.
const PATTERN: &str = r"^\+?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$";

/// An amount that is not negative, in the notation of Kubernetes.
///
/// Two quantities are equal if they are the same amount, however written: `1Gi` equals `1024Mi`.
#[derive(Clone)]
pub struct Quantity {
    text: String,
    nanos: u128,
}

/// Why a text is no quantity, or a quantity not of the asked kind. Every message names what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text does not follow the notation.
    #[error("{0:?} is no quantity: expected a number with an optional suffix, such as 500m, 1.5, 64Mi or 2G")]
    Notation(String),
    /// The amount is below zero.
    #[error("{0:?} is negative: expected zero or more")]
    Negative(String),
    /// The amount cannot be held.
    #[error("{0:?} is too large: expected at most {1}")]
    TooLarge(String, &'static str),
    /// The amount is less than one byte, most likely an `m` that should be `M` or `Mi`.
    #[error("{0:?} is less than one byte: expected a number of bytes such as 64Mi (the suffix m is a thousandth)")]
    LessThanOneByte(String),
}

impl Quantity {
    /// The amount in bytes. Parts of a byte are rounded up, as Kubernetes does.
    ///
    /// # Errors
    /// If the amount is more than a `u64` holds, or more than nothing but less than one byte.
    pub fn bytes(&self) -> Result<u64, QuantityError> {
        if self.nanos > 0 && self.nanos < NANO {
            return Err(QuantityError::LessThanOneByte(self.text.clone()));
        }
        self.in_units_of(NANO, "18446744073709551615 bytes")
    }

    /// The amount in thousandths of a CPU, rounded up.
    ///
    /// # Errors
    /// If the amount is more than a `u64` holds.
    pub fn milli_cpu(&self) -> Result<u64, QuantityError> {
        self.in_units_of(NANO / 1000, "18446744073709551615 thousandths of a CPU")
    }

    /// The amount as a whole number, rounded up.
    ///
    /// # Errors
    /// If the amount is more than a `u64` holds.
    pub fn count(&self) -> Result<u64, QuantityError> {
        self.in_units_of(NANO, "18446744073709551615")
    }

    /// This many bytes, written with the largest binary suffix that keeps it exact.
    pub fn from_bytes(bytes: u64) -> Quantity {
        let (mut value, mut suffix) = (bytes, "");
        for larger in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
            if value == 0 || !value.is_multiple_of(1024) {
                break;
            }
            (value, suffix) = (value / 1024, larger);
        }
        Quantity { text: format!("{value}{suffix}"), nanos: u128::from(bytes) * NANO }
    }

    /// This many thousandths of a CPU.
    pub fn from_milli_cpu(milli: u64) -> Quantity {
        let text = if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") };
        Quantity { text, nanos: u128::from(milli) * (NANO / 1000) }
    }

    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn in_units_of(&self, unit: u128, most: &'static str) -> Result<u64, QuantityError> {
        u64::try_from(self.nanos.div_ceil(unit)).map_err(|_| QuantityError::TooLarge(self.text.clone(), most))
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let notation = || QuantityError::Notation(text.to_owned());
        let number = match text.as_bytes() {
            [b'-', ..] => {
                text[1..].parse::<Quantity>().map_err(|_| notation())?;
                return Err(QuantityError::Negative(text.to_owned()));
            }
            [b'+', ..] => &text[1..],
            _ => text,
        };
        let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
        let (digits, suffix) = number.split_at(end);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(notation());
        }
        let scale = Scale::parse(suffix).ok_or_else(notation)?;
        let too_large = || QuantityError::TooLarge(text.to_owned(), "1e29");
        let nanos = scale.apply(whole, fraction).ok_or_else(too_large)?;
        Ok(Quantity { text: text.to_owned(), nanos })
    }
}

/// What a suffix multiplies by.
enum Scale {
    /// A power of 1024.
    Binary(u32),
    /// A power of ten.
    Decimal(i32),
}

impl Scale {
    fn parse(suffix: &str) -> Option<Scale> {
        Some(match suffix {
            "n" => Scale::Decimal(-9),
            "u" => Scale::Decimal(-6),
            "m" => Scale::Decimal(-3),
            "" => Scale::Decimal(0),
            "k" => Scale::Decimal(3),
            "M" => Scale::Decimal(6),
            "G" => Scale::Decimal(9),
            "T" => Scale::Decimal(12),
            "P" => Scale::Decimal(15),
            "E" => Scale::Decimal(18),
            "Ki" => Scale::Binary(1),
            "Mi" => Scale::Binary(2),
            "Gi" => Scale::Binary(3),
            "Ti" => Scale::Binary(4),
            "Pi" => Scale::Binary(5),
            "Ei" => Scale::Binary(6),
            _ => {
                let exponent = suffix.strip_prefix(['e', 'E'])?;
                let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                // An exponent too long for i32 is as good as the largest: the amount is then too large, or nothing.
                let limit = if exponent.starts_with('-') { i32::MIN } else { i32::MAX };
                Scale::Decimal(exponent.parse().unwrap_or(limit))
            }
        })
    }

    /// The number `whole.fraction` times the scale in billionths, rounded up; `None` if it cannot be held.
    ///
    /// What stands behind the 18th decimal place only counts as "a little more". With that, every amount that a `u64`
    /// of bytes can hold stays within 128 bits on its way here.
    fn apply(&self, whole: &str, fraction: &str) -> Option<u128> {
        let fraction = fraction.trim_end_matches('0');
        let (fraction, more) = fraction.split_at(fraction.len().min(18));
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        let mantissa = if digits.is_empty() { 0 } else { digits.parse::<u128>().ok()? };
        let mantissa = mantissa.checked_add(u128::from(!more.is_empty()))?;
        if mantissa == 0 {
            return Some(0);
        }
        let places = fraction.len() as i64;
        let (power, binary) = match *self {
            Scale::Decimal(power) => (i64::from(power) + 9 - places, 1),
            Scale::Binary(power) => (9 - places, 1024u128.pow(power)),
        };
        let mantissa = mantissa.checked_mul(binary)?;
        let factor = u32::try_from(power.unsigned_abs()).ok().and_then(|power| 10u128.checked_pow(power));
        match factor {
            Some(factor) if power >= 0 => mantissa.checked_mul(factor),
            Some(divisor) => Some(mantissa.div_ceil(divisor)),
            None if power >= 0 => None,
            None => Some(1),
        }
    }
}

impl Default for Quantity {
    fn default() -> Self {
        Quantity { text: "0".to_owned(), nanos: 0 }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Debug for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quantity({})", self.text)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as 500m, 1.5, 64Mi or 2G")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Quantity, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Quantity, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Quantity, E> {
                self.visit_str(&value.to_string())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An amount such as 500m, 1.5, 64Mi or 2G.",
            "pattern": PATTERN,
            "minimum": 0,
            "x-kubernetes-int-or-string": true,
        })
    }
}

#[cfg(test)]
mod tests;
