import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.kotlin.jvm)
}

kotlin.compilerOptions.jvmTarget.set(JvmTarget.JVM_1_8)

java {
    sourceCompatibility = JavaVersion.VERSION_1_8
    targetCompatibility = JavaVersion.VERSION_1_8
}

dependencies {
    implementation(libs.gson)
    // The same classes as the Android library, which the app brings; its natives are the desktop's.
    compileOnly(libs.onnxruntime)

    testImplementation(libs.junit)
    testImplementation(libs.onnxruntime)
    testImplementation(libs.djl.tokenizers)
}

tasks.test {
    systemProperty("golden", rootDir.resolve("../tests/golden").path)
    systemProperty("bundles", rootDir.resolve("../out").path)
}
