plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "org.pocketlm.app"
    compileSdk = 35

    defaultConfig {
        applicationId = "org.pocketlm.app"
        minSdk = 26
        targetSdk = 35
        versionCode = 1
        versionName = "0.1.0"
        ndk.abiFilters += listOf("arm64-v8a", "x86_64")
    }

    sourceSets["main"].java.srcDirs("src/main/kotlin", "src/executorch/kotlin")

    // Libraries stay uncompressed and aligned to 16 KB pages, and are mapped out of the APK.
    packaging.jniLibs.useLegacyPackaging = false

    buildTypes {
        release {
            isMinifyEnabled = true
            isShrinkResources = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"), "proguard-rules.pro")
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
}

kotlin.compilerOptions.jvmTarget.set(org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_1_8)

dependencies {
    implementation(project(":core"))
    implementation(libs.gson)
    implementation(libs.onnxruntime.android)
    implementation(libs.executorch.android)
}
