import Foundation

/// Text for a small number: three significant digits.
public func scientific(_ value: Double) -> String {
    String(format: "%.3g", value)
}

/// Bytes in the unit that phones show: powers of 1000.
public func megabytes(_ bytes: Int) -> String {
    "\((Double(bytes) / 1e6).rounded().formatted(.number.grouping(.never).precision(.fractionLength(0)))) MB"
}

/// IEEE half precision to single precision. Float16 exists in Swift, but not on Intel Macs, where a simulator may run.
public func float(half: UInt16) -> Float {
    let sign = UInt32(half & 0x8000) << 16
    let exponent = UInt32(half >> 10) & 0x1F
    let fraction = UInt32(half & 0x3FF)
    switch exponent {
    case 0:
        let magnitude = Float(fraction) * 0x1p-24
        return sign == 0 ? magnitude : -magnitude
    case 0x1F:
        return Float(bitPattern: sign | 0x7F80_0000 | fraction << 13)
    default:
        return Float(bitPattern: sign | (exponent + 112) << 23 | fraction << 13)
    }
}
