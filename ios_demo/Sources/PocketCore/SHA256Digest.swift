import Foundation

#if canImport(CryptoKit)
    import CryptoKit

    /// SHA-256 of bytes that come piece by piece: Apple's, which uses the processor's instructions for it.
    struct SHA256Digest {
        private var state = CryptoKit.SHA256()

        mutating func update(_ data: Data) {
            state.update(data: data)
        }

        func hexadecimal() -> String {
            PocketCore.hexadecimal(state.finalize())
        }
    }
#else
    typealias SHA256Digest = PortableSHA256
#endif

func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
    let digits = Array("0123456789abcdef".utf8)
    let text = bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }
    return String(decoding: text, as: UTF8.self)
}

/// SHA-256 (FIPS 180-4) where there is no CryptoKit: so that the check of a bundle can be tested on Linux.
struct PortableSHA256 {
    private static let blockBytes = 64
    private static let rounds: [UInt32] = [
        0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
        0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
        0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
        0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
        0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
        0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
        0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
        0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
    ]

    private var hash: [UInt32] = [
        0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19,
    ]
    private var pending: [UInt8] = []
    private var schedule = [UInt32](repeating: 0, count: 64)
    private var length: UInt64 = 0  // bytes

    mutating func update(_ data: Data) {
        length += UInt64(data.count)
        pending.append(contentsOf: data)
        let whole = pending.count / Self.blockBytes * Self.blockBytes
        for start in stride(from: 0, to: whole, by: Self.blockBytes) { compress(at: start) }
        pending.removeFirst(whole)
    }

    func hexadecimal() -> String {
        var last = self
        last.pending.append(0x80)
        while last.pending.count % Self.blockBytes != 56 { last.pending.append(0) }
        let bits = length &* 8
        last.pending.append(contentsOf: (0..<8).map { UInt8(truncatingIfNeeded: bits >> (56 - 8 * UInt64($0))) })
        for start in stride(from: 0, to: last.pending.count, by: Self.blockBytes) { last.compress(at: start) }
        let bytes = last.hash.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (24 - 8 * UInt32($0))) }
        }
        return PocketCore.hexadecimal(bytes)
    }

    private mutating func compress(at start: Int) {
        for i in 0..<16 {
            let byte = start + 4 * i
            schedule[i] =
                UInt32(pending[byte]) << 24 | UInt32(pending[byte + 1]) << 16 | UInt32(pending[byte + 2]) << 8
                | UInt32(pending[byte + 3])
        }
        for i in 16..<64 {
            let early = schedule[i - 15]
            let late = schedule[i - 2]
            let small0 = rotated(early, 7) ^ rotated(early, 18) ^ (early >> 3)
            let small1 = rotated(late, 17) ^ rotated(late, 19) ^ (late >> 10)
            schedule[i] = schedule[i - 16] &+ small0 &+ schedule[i - 7] &+ small1
        }
        var (a, b, c, d) = (hash[0], hash[1], hash[2], hash[3])
        var (e, f, g, h) = (hash[4], hash[5], hash[6], hash[7])
        for i in 0..<64 {
            let big1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)
            let choice = (e & f) ^ (~e & g)
            let first = h &+ big1 &+ choice &+ Self.rounds[i] &+ schedule[i]
            let big0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)
            let majority = (a & b) ^ (a & c) ^ (b & c)
            (h, g, f, e) = (g, f, e, d &+ first)
            (d, c, b, a) = (c, b, a, first &+ big0 &+ majority)
        }
        for (i, word) in [a, b, c, d, e, f, g, h].enumerated() { hash[i] = hash[i] &+ word }
    }

    private func rotated(_ word: UInt32, _ bits: UInt32) -> UInt32 {
        (word >> bits) | (word << (32 - bits))
    }
}
