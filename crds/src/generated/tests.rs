use super::*;

#[test]
fn print() {
    println!("{}", crds_yaml());
}
